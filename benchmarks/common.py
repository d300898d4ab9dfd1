"""Common parts of the benchmarks: processes that take turns, rounds, tables, figures and publishing."""

import datetime
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
END = "<!-- end of figures -->\n"


class Unavailable(Exception):
    """Something is not available on this machine; the message says why."""


class Process:
    """Holds the object build(*arguments) in a separate process, and calls its methods there.

    `ask` waits for the answer, so that no two processes compute at once. The interpreter `python` must find `build`.
    `environment` adds variables to those of this process. Raises Unavailable if `build` does, RuntimeError if it fails.
    """

    def __init__(self, build, *arguments, python=sys.executable, environment=None):
        self._pipe, other = multiprocessing.Pipe()
        self._log = tempfile.TemporaryFile()
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        self._process = subprocess.Popen(
            [python, "-c", f"from benchmarks.common import serve; serve({other.fileno()})"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            pass_fds=[other.fileno()],
            cwd=ROOT,
        )
        other.close()
        try:
            self.ask(build, *arguments)
        except BaseException:
            self.close()
            raise

    def ask(self, method, *arguments, **named):
        """What the method gives. Raises Unavailable as it does, RuntimeError if it fails or the process ends."""
        try:
            self._pipe.send((method, arguments, named))
            answer, error = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace").strip().splitlines()[-15:]
            raise RuntimeError("\n".join([f"the process ended with code {code}:", *tail])) from None
        if error:
            raise error
        return answer

    def close(self):
        """Ends the process, after its object's close()."""
        self._pipe.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(descriptor):
    """A process' side: builds the object, then calls its methods until nobody asks any longer."""
    os.set_inheritable(descriptor, False)
    pipe, held = multiprocessing.connection.Connection(descriptor), None
    try:
        while True:
            method, arguments, named = pipe.recv()
            try:
                if held is None:
                    held, answer = method(*arguments, **named), None
                else:
                    answer = getattr(held, method)(*arguments, **named)
                pipe.send((answer, None))
            except Unavailable as error:
                pipe.send((None, error))
            except Exception:
                pipe.send((None, RuntimeError(traceback.format_exc())))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    finally:
        if hasattr(held, "close"):
            held.close()


def call(function, *arguments):
    """function(*arguments), in a separate process."""
    with Process(functools.partial, function) as process:
        return process.ask("__call__", *arguments)


def in_turn(contestants, rounds):
    """Each of `contestants` once a round; each round begins one further, so that a noisy moment hits all alike."""
    for number in range(rounds):
        first = number % max(len(contestants), 1)
        yield from contestants[first:] + contestants[:first]


def say(text):
    """One line on standard error, with the time."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def write_json(path, found):
    path.write_text(json.dumps(found, indent=1) + "\n")


def table(head, rows):
    """The lines of a table in Markdown."""
    return ["| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *rows)]


def figure(size, columns=1):
    """(figure, axes) to draw on; `savefig` writes it."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=size, layout="constrained")
    return drawing, drawing.subplots(1, columns)


def publish(page, command, text):
    """Puts `text` between the marks of `command` in a page of docs/. Raises ValueError if it has none."""
    start = f"<!-- figures: written by {command} -->\n"
    before, rest = page.read_text().split(start)
    _, after = rest.split(END)
    page.write_text(f"{before}{start}\n{text}\n{END}{after}")
