"""The folder of one run: where its files lie, and whether a path is one."""

import contextlib
import glob
import json
import os
import tempfile

import tensorflow as tf

import keras_rtrl
from keras_rtrl._errors import UsageError


class RunFolder:
    """Paths of a run's files.

    config.gin            every setting, resolved; what resuming, evaluating and exporting read
    run.json              version, command, preset, seed, status, frames played and asked for, recurrent parameters
    metrics.csv           one row a logging interval
    learning_curve.png    mean return, or errors of predictions, over frames
    events/               TensorBoard events
    checkpoints/          all that is needed to go on
    policy/               the exported policy, a SavedModel
    evaluation.json       the last `evaluate`
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self.config = os.path.join(self.path, "config.gin")
        self.record = os.path.join(self.path, "run.json")
        self.metrics = os.path.join(self.path, "metrics.csv")
        self.curve = os.path.join(self.path, "learning_curve.png")
        self.events = os.path.join(self.path, "events")
        self.checkpoints = os.path.join(self.path, "checkpoints")
        self.policy = os.path.join(self.path, "policy")
        self.evaluation = os.path.join(self.path, "evaluation.json")

    def holds_run(self):
        """Whether there is something to resume, evaluate or export: a config and a first checkpoint."""
        return os.path.isfile(self.config) and os.path.isfile(os.path.join(self.checkpoints, "checkpoint"))

    def scratch(self):
        """A folder for another process of this run: its checkpoints are this one's, all else goes when it goes."""
        folder = tempfile.TemporaryDirectory()
        run = RunFolder(folder.name)
        run.checkpoints, run._folder = self.checkpoints, folder
        return run

    def read_record(self):
        """The content of run.json, {} where there is none."""
        try:
            with open(self.record, encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def write_record(self, **changes):
        """Merges `changes` into run.json."""
        write_json(self.record, {**self.read_record(), "version": keras_rtrl.__version__, **changes})


def open_run(path):
    """The RunFolder at `path`. Raises UsageError where `path` holds no run."""
    run = RunFolder(path)
    if not os.path.isdir(run.path):
        raise UsageError(f"{path}: no such run folder")
    if not run.holds_run():
        raise UsageError(f"{path}: not a run folder (it needs config.gin and a checkpoint in checkpoints/)")
    state = tf.train.get_checkpoint_state(run.checkpoints)
    newest = state.model_checkpoint_path if state else os.path.join(run.checkpoints, "checkpoint")
    if not (os.path.isfile(f"{newest}.index") and glob.glob(f"{glob.escape(newest)}.data-*")):
        raise UsageError(f"{path}: its newest checkpoint is broken ({newest} lacks its index or its data)")
    return run


def new_run(path):
    """The RunFolder of a new run, still to be made. Raises UsageError where it holds a run or cannot be written."""
    run = RunFolder(path)
    if run.holds_run():
        raise UsageError(f"{path}: holds a run already; go on with it by --resume {path}, or choose another --out")
    check_writable(path)
    return run


def check_writable(path):
    """Raises UsageError where the folder `path` cannot be made, or files in it. Leaves nothing behind."""
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        # what /proc answers to a new file would read as if the folder were missing
        reason = "it takes no files" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise UsageError(f"{path}: cannot write into this folder ({existing}: {reason})") from error


def write_text(path, text):
    """Writes a file atomically: a reader, another writer, or a kill, finds the old text or the new one."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path):
    """Yields a path of this process alone, ending as `path` does; what is written there replaces `path` at once."""
    temporary = os.path.join(os.path.dirname(path), f".{os.getpid()}.{os.path.basename(path)}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_json(path, content):
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")
