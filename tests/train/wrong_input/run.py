"""Wrong command lines, made by rule, each in a fork of one interpreter that has imported all there is to import.

    python tests/train/wrong_input/run.py [--cases N] [--every K] [--only TEXT] [--run RUN] [--keep FOLDER]

Without --cases all of them. Each case runs `keras-rtrl` in a fresh scratch folder, with a limit of time, of processor
time and of memory. Right is: one line on the error stream that begins with "keras-rtrl: error:" and names what is
wrong, exit code 2, and a folder as it was before. The report has the number of cases by verdict and the command line of
each case that is not right; the exit code is 1 if there is one.
"""

import argparse
import collections
import contextlib
import ctypes
import os
import pathlib
import random
import re
import resource
import shlex
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no thread before a fork

import keras_rtrl_cli

with keras_rtrl_cli.quiet():
    import files
    import flags
    import matplotlib.backends.backend_agg  # noqa: F401  imported once, not in every case
    import settings
    from case import Made

    from keras_rtrl.train import cli, evaluate, export, learner, loop, report, sweep, throughput, worth  # noqa: F401

WALL, PROCESSOR, MEMORY = 240, 60, 10 * 2**30  # seconds, seconds, bytes of address space
LONGEST = 1500  # letters of a message


def all_cases(made):
    """Every case there is; their order is the same each time."""
    cases = []
    for rule in (
        settings.values, settings.options, settings.names, settings.files, files.folders, flags.values, flags.operands,
        flags.twice, flags.combinations, flags.variables, flags.signals,
    ):  # fmt: skip
        cases += rule()
    cases += [*files.damaged(made), *files.damaged_studies()]
    return list({case.name: case for case in cases}.values())


def sample(cases, number):
    """Some of the cases, refused at once rather than taken, from all over."""
    cheap = [case for case in cases if case.expected == "refused" and "simulator" not in case.name]
    return random.Random(0).sample(cheap, min(number, len(cheap)))


def drop_capabilities():
    """Makes root's process heed the permissions of files."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


class Child:
    """A case that runs."""

    def __init__(self, case, made, root):
        self.case = case
        self.scratch = pathlib.Path(tempfile.mkdtemp(dir=root))
        self.folder, self.temporary = self.scratch / "work", self.scratch / "tmp"
        for path in (self.folder, self.temporary):
            path.mkdir()
        for name, text in case.files.items():
            (self.folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        if case.prepare:
            case.prepare(self.folder, made)
        self.before = self.contents()
        self.started, self.signalled = time.monotonic(), None
        self.pid = os.fork()
        if self.pid == 0:
            self._be()

    def _be(self):
        """The child: the command, and nothing of what the parent would do after it."""
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
            signal.signal(signal.SIGQUIT, signal.SIG_DFL)
            for number, name in ((1, "stdout"), (2, "stderr")):
                stream = os.open(self.scratch / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                os.dup2(stream, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1, errors="backslashreplace")
            resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.environ.update(self.case.environment, TMPDIR=str(self.temporary))
            tempfile.tempdir = None
            os.chdir(self.folder)
            if self.case.unprivileged:
                drop_capabilities()
            sys.argv = ["keras-rtrl", *self.case.words]
            code = cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code or 0)

    def contents(self):
        """{path: what can be seen to have changed} of the folder."""
        found = {}
        for path in self.folder.rglob("*"):
            status = path.lstat()
            written = () if path.is_dir() and not path.is_symlink() else (status.st_size, status.st_mtime_ns)
            found[str(path.relative_to(self.folder))] = (status.st_mode, *written)
        return found

    def output(self, name):
        with contextlib.suppress(FileNotFoundError):
            return (self.scratch / name).read_text(errors="surrogateescape")
        return ""

    def send(self):
        """Sends the case's signal once its time has come."""
        number, sign = self.case.signal
        if isinstance(sign, float):
            come = time.monotonic() - self.started > sign
        else:
            file, _, text = sign.partition(":")
            path = self.scratch / file if file == "stdout" else self.folder / file
            come = path.exists() and (not text or text in path.read_text(errors="replace"))
        if come:
            self.signalled = time.monotonic()
            os.kill(self.pid, number)

    def ended(self):
        """The verdict and its reason, None while the case runs."""
        if self.case.signal and not self.signalled:
            self.send()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            if time.monotonic() - self.started < WALL:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return "hang", f"not at its end after {WALL} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it has left running
        return self.judge(os.waitstatus_to_exitcode(status))

    def judge(self, code):
        """("refused" | "taken" | "ended", "") for what is right, else (a fault, what it is)."""
        errors, expected = self.output("stderr"), self.case.expected
        if "Traceback (most recent" in errors or "Traceback (most recent" in self.output("stdout"):
            raised = re.findall(r"^(?!keras-rtrl)[\w.]+(?:Error|Exception|Interrupt)\b.*$", errors, re.MULTILINE)
            return "traceback", (raised or errors.splitlines())[-1][:300]
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and not self.case.signal):
            return "hang", f"more than {PROCESSOR} s of processor time"
        if expected == "ended":
            number, _ = self.case.signal
            if self.signalled is None:
                return "no signal", f"was over before, with {code}"
            return ("ended", "") if code in (128 + number, -number, 0) else ("exit code", f"{code}: {errors[-300:]}")
        if code < 0:
            return "crash", f"{signal.Signals(-code).name}: {errors[-300:]}"
        if code == 0:
            return self._taken(errors)
        return self._refused(code, errors)

    def _taken(self, errors):
        if self.case.expected == "refused":
            return "accepted", "exit code 0"
        return "taken", ""

    def _refused(self, code, errors):
        lines = [line for line in errors.splitlines() if line and "%|" not in line]  # no bar of progress
        usage = re.match(r"usage: ", errors) is not None  # argparse says how it is called before it says what is wrong
        message = lines[-1] if lines else ""
        if code != 2 and not (code == 1 and self.case.expected == "either"):  # 1: what was done could not be written
            return "exit code", f"{code}: {errors[-300:]}"
        if self.case.expected == "taken":
            return "rejected", message[:300]
        stopped = code == 1 and re.match("keras-rtrl: training stopped: .", message)
        if not (stopped or re.match("keras-rtrl[a-z ]*: error: .", message)) or (len(lines) != 1 and not usage):
            return "no line", errors[-300:]
        if len(message) > LONGEST:
            return "long", f"{len(message)} letters: {message[:300]}"
        if not all(character.isprintable() for character in message):
            return "unprintable", repr(message[:300])
        if self.case.names and not any(name and name in message for name in self.case.names):
            return "unnamed", f"none of {self.case.names} in: {message[:300]}"
        if code == 1:
            return "refused", ""
        after = self.contents()
        changed = sorted(path for path in {*after, *self.before} if after.get(path) != self.before.get(path))
        kept = re.compile("ray$|.*autograph|__pycache__$")  # Ray leaves a folder, AutoGraph its bytecode
        changed += [path.name for path in self.temporary.iterdir() if not kept.match(path.name)]
        if changed:
            return "litter", ", ".join(changed[:5])
        return "refused", ""


RIGHT = ("refused", "taken", "ended")


def run(cases, made, jobs, root):
    """Yields (child, verdict, reason) as cases end."""
    waiting, active = collections.deque(cases), []
    while waiting or active:
        while waiting and len(active) < jobs:
            active.append(Child(waiting.popleft(), made, root))
        for child in list(active):
            result = child.ended()
            if result is not None:
                active.remove(child)
                yield child, *result
        time.sleep(0.005)


def make_run(path):
    """Trains the run that cases spoil, in a fork too."""
    pid = os.fork()
    if pid == 0:
        gin_file = path.parent / "made.gin"
        gin_file.write_text(settings.TMAZE)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(cli.main(["train", str(gin_file), "--out", str(path)]))
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit("the run that the cases need cannot be trained")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cases", type=int, help="some of those that are refused, from all over (default: all there are)"
    )
    parser.add_argument("--only", default="", help="those whose name has this in it (a regular expression)")
    parser.add_argument("--run", help="a finished run of the T-maze (default: trains one)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time (default: one a core)")
    parser.add_argument("--keep", help="folder for what the wrong cases leave behind")
    parser.add_argument("--list", action="store_true", help="name them alone")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="each K-th case")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="from the N-th case on")
    args = parser.parse_args()
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("there are threads before the first fork")
    with tempfile.TemporaryDirectory(prefix="keras_rtrl_wrong_") as root:
        made = pathlib.Path(root) / "made"
        make_run(made) if args.run is None else shutil.copytree(args.run, made)
        made = Made(made)
        cases = [case for case in all_cases(made) if re.search(args.only, case.name)]
        cases = sample(cases, args.cases) if args.cases else cases
        cases = cases[args.first :: args.every]
        if args.list:
            print(*(f"{case.expected}: {ascii_only(case.name)}" for case in cases), sep="\n")
            return 0
        verdicts, wrong, started = collections.Counter(), [], time.monotonic()
        for number, (child, verdict, reason) in enumerate(run(cases, made, args.jobs, root), 1):
            verdicts[verdict] += 1
            if verdict not in RIGHT:
                line = (
                    f"{verdict}: {child.case.name}\n    {reason}\n    keras-rtrl {shlex.join(child.case.words)[:500]}"
                )
                wrong.append(line)
                print(ascii_only(line), flush=True)
                if args.keep:
                    target = pathlib.Path(args.keep) / f"{number}"
                    os.makedirs(args.keep, exist_ok=True)
                    child.scratch.rename(target)
            shutil.rmtree(child.scratch, ignore_errors=True)
        cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(f"{len(cases)} cases in {time.monotonic() - started:.0f} s, {cpu:.0f} s of processor time in all:")
        print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    return 1 if wrong else 0


def ascii_only(text):
    return text.encode("ascii", "backslashreplace").decode()


if __name__ == "__main__":
    sys.exit(main())
