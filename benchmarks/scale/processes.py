"""One process for each thing measured, all alive together, asked one at a time."""

import multiprocessing
import os
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TICK = os.sysconf("SC_CLK_TCK")


class Process:
    """Holds what `build(*arguments)` gives in a process of its own, and calls its methods there."""

    def __init__(self, build, *arguments):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build, arguments))
        self._process.start()
        other.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, method, *arguments):
        """What the method gives; raises RuntimeError with its traceback where it fails."""
        self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self):
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            failed, answer = True, "the process has ended"
        if failed:
            raise RuntimeError(answer)
        return answer

    def close(self):
        """Ends the process, after its object's close()."""
        self._pipe.close()
        self._process.join(60)
        self._process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def call(function, *arguments):
    """function(*arguments), in a process of its own."""
    with Process(_Call, function) as process:
        return process.ask("call", *arguments)


class _Call:
    def __init__(self, function):
        self.call = function


def _serve(pipe, build, arguments):
    import traceback

    held = None
    try:
        held = build(*arguments)
        pipe.send((False, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((False, getattr(held, method)(*arguments)))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception:
        pipe.send((True, traceback.format_exc()))
    finally:
        if hasattr(held, "close"):
            held.close()


class Usage:
    """CPU used since it was made: by this process and all that it has started, and by the whole machine.

    Attributes, once `stop` was called:
      seconds: of the clock.
      own: cores used by this process and those below it.
      busy: cores used on the machine.
    """

    def __init__(self):
        self._start = time.perf_counter(), _tree_seconds(), _machine_seconds()

    def stop(self):
        """Takes the readings."""
        clock, tree, machine = self._start
        self.seconds = time.perf_counter() - clock
        self.own = (_tree_seconds() - tree) / self.seconds
        self.busy = (_machine_seconds() - machine) / self.seconds


def _tree_seconds():
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = int(fields[11]) + int(fields[12])
    return sum(ticks for pid, ticks in used.items() if _is_below(pid, os.getpid(), parents)) / _TICK


def _is_below(pid, top, parents):
    while pid and pid != top:
        pid = parents.get(pid)
    return pid == top


def _machine_seconds():
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, *_ = fields
    return (user + nice + system + irq + softirq) / _TICK
