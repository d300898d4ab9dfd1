"""Many runs of one preset: tasks x conditions x seeds, each in a separate process."""

import collections
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import gin
from tqdm import tqdm

from keras_rtrl._checks import whole_number
from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.train import config, metrics, used
from keras_rtrl.train.run_folder import RunFolder, check_writable
from keras_rtrl.train.study import finished_run

TAIL = 15  # lines of a failed run's output that are shown


class Run:
    """One run of a sweep.

    Attributes:
      key: (task, condition, seed), as `Study.read` has them: what labels are as folders' names, and an int.
      name: str, <task>/<condition>/seed-<seed>.
      folder: RunFolder of the training, <study>/.runs/<name>; gone when the run is kept in the study's table.
      bindings: list of gin bindings.
      frames: int.
    """

    def __init__(self, study, task, condition, seed, frames, bindings):
        self.key = (config.slug(task), config.slug(condition), seed)
        self.name = os.path.join(*self.key[:2], f"seed-{seed}")
        self.folder = RunFolder(os.path.join(study.unfinished, self.name))
        self.output = f"{self.folder.path}.txt"
        self.lock = f"{self.folder.path}.lock"
        self.bindings = bindings
        self.frames = frames

    def check_frames(self, study, kept):
        """Raises UsageError if the run, kept in the study (a FinishedRun) or begun, has another number of frames."""
        begun = self.folder.read_record().get("total_frames", self.frames)
        for place, other in ((study.runs, kept.total_frames if kept else self.frames), (self.folder.path, begun)):
            if other != self.frames:
                raise UsageError(
                    f"{place}: {self.name} is a run of {other} frames, this sweep is of {self.frames}: "
                    "choose another --out"
                )


def chosen(option, groups, text):
    """Those of `groups` that `text` names by their folders, commas between; all for None.

    Raises:
      UsageError: a name that is none of them.
    """
    if text is None:
        return groups
    by_slug = {config.slug(label): label for label in groups}
    names = [config.slug(text)] if config.slug(text) in by_slug else [config.slug(name) for name in text.split(",")]
    for name in names:
        if name not in by_slug:
            raise UsageError(f"{option}: {name!r} is none of {', '.join(by_slug)}")
    return {label: groups[label] for name, label in by_slug.items() if name in names}


def runs_of(preset, study, tasks, conditions, seeds, frames=None):
    """The Runs of a sweep, seed by seed, so that every task and condition has its first result early.

    Args:
      preset: as `keras-rtrl train` takes it.
      study: the Study they are of.
      tasks, conditions: dicts from labels to lists of bindings.
      seeds: ints.
      frames: of each run; None for what preset and bindings say.

    Raises:
      UsageError: bindings that gin does not accept, or frames that are no number.
    """
    settings = []
    for task, task_bindings in tasks.items():
        for condition, condition_bindings in conditions.items():
            bindings = [*task_bindings, *condition_bindings, *([f"train.frames = {frames}"] if frames else [])]
            used.check("train", *config.load(config.find(preset), bindings))
            try:
                count = whole_number("train.frames", gin.query_parameter("train.frames"))
            except ValueError as error:
                raise UsageError(f"{preset}: {one_line(error)}") from error
            settings.append((task, condition, count, bindings))
    return [Run(study, task, condition, seed, *rest) for seed in seeds for task, condition, *rest in settings]


def train(study, runs, preset, jobs, trust=False, modules=()):
    """Trains the runs that the study does not hold, `jobs` processes at a time, and puts them into it.

    A run that was begun goes on from its checkpoint. A run that another sweep is training is waited for. SIGINT,
    SIGTERM and SIGHUP end the sweep after a checkpoint of each process.

    Args:
      study: the Study.
      runs: list of Runs.
      preset: as `keras-rtrl train` takes it.
      jobs: int, processes at a time.
      trust: whether a run that was begun may have settings that import modules.
      modules: names of modules for each run's --module.

    Returns:
      Exit code: 0; 1 if a run failed (the command prints which); 128 + n after signal n.

    Raises:
      UsageError: runs of other frames, a broken table, or a folder that takes no files; before anything is trained.
    """
    kept = study.read()
    for run in runs:
        run.check_frames(study, kept.get(run.key))
        check_writable(run.folder.path)
    waiting = collections.deque(run for run in runs if run.key not in kept)
    active, failed = {}, []
    with _signals() as received, tqdm(total=sum(run.frames for run in runs), unit=" frames", unit_scale=True) as bar:
        try:
            while (waiting or active) and not received:
                for run, (process, lock) in list(active.items()):
                    if process.poll() is not None:
                        del active[run]
                        failed += _closed(study, run, process, lock)
                for run in list(waiting):
                    if len(active) == jobs:
                        break
                    lock = _locked(run)
                    if lock is not None:
                        waiting.remove(run)
                        if run.key in study.read():  # by the sweep that held the lock
                            os.close(lock)
                        else:
                            active[run] = (_started(run, preset, jobs, trust, modules, lock), lock)
                _show(bar, runs, waiting, active, failed)
                time.sleep(0.3)
        finally:
            for process, _ in active.values():
                process.send_signal(signal.SIGINT)
            for run, (process, lock) in active.items():
                process.wait()
                _closed(study, run, process, lock)
    for run, reason in failed:
        print(f"{run.name}: failed {reason}; its last output, of {run.output}:", file=sys.stderr)
        print("".join(f"    {line}" for line in _tail(run.output)), end="", file=sys.stderr)
    return 128 + received[0] if received else 1 if failed else 0


def _locked(run):
    """The run's lock, a file descriptor; None if another process holds it."""
    os.makedirs(os.path.dirname(run.lock), exist_ok=True)
    lock = os.open(run.lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _started(run, preset, jobs, trust, modules, lock):
    """A process that trains the run. It holds the lock too, in case this sweep is killed."""
    words = [sys.executable, "-P", "-m", "keras_rtrl_cli", "train"]  # -P: imports nothing from the working directory
    if run.folder.holds_run():
        words += ["--resume", run.folder.path, *(["--trust"] if trust else [])]
    else:
        words += [preset, "--seed", str(run.key[2]), "--out", run.folder.path]
        for binding in run.bindings:
            words += ["--gin", binding]
    words += [word for module in modules for word in ("--module", module)]
    threads = str(max(os.cpu_count() // jobs, 1))
    limits = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), threads)
    with open(run.output, "w", encoding="utf-8") as output:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **limits},
            start_new_session=True, pass_fds=[lock],
        )  # fmt: skip


def _closed(study, run, process, lock):
    """Keeps the results of a process that ended; [(run, reason)] if it failed, else []."""
    try:
        try:
            if run.folder.read_record().get("status") != "finished":
                return [(run, f"with exit code {process.returncode}")]
            finished = finished_run(run.folder)
        except UsageError as error:
            return [(run, f"({one_line(error)})")]
        study.add(*run.key[:2], finished)
        shutil.rmtree(run.folder.path)
        os.remove(run.output)
        return []
    finally:
        os.close(lock)


def _show(bar, runs, waiting, active, failed):
    ended = {*runs} - {*waiting} - {*active} - {run for run, _ in failed}
    played = sum(run.frames for run in ended)
    for run in active:
        with contextlib.suppress(UsageError):  # says what is wrong with it when it ends
            rows = metrics.read(run.folder.metrics)
            played += min(int(rows[-1]["frames"]), run.frames) if rows else 0
    bar.set_postfix(running=len(active), failed=len(failed), refresh=False)
    if played != bar.n:
        bar.n = played
        bar.refresh()


def _tail(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return collections.deque((line.rpartition("\r")[2] for line in file), maxlen=TAIL)


@contextlib.contextmanager
def _signals():
    """Yields a list that each signal which ends a sweep is appended to."""
    received = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
