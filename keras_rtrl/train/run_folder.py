"""The folder of one run: the paths of its files, and whether a path is such a folder."""

import contextlib
import errno
import json
import os
import tempfile

import tensorflow as tf

import keras_rtrl
from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.train.locks import Lock

# of run.json, those that are read
_FIELDS = {
    "frames": int,
    "preset": str,
    "recurrent_parameters": int,
    "seed": int,
    "status": str,
    "total_frames": int,
    "updates": int,
    "version": str,
}


class RunFolder:
    """Paths of a run's files.

    config.gin            every setting, resolved; what resuming, evaluating and exporting read
    run.json              version, command, preset, seed, status, frames played and asked for, recurrent parameters
    metrics.csv           one row a logging interval
    learning_curve.png    mean return, or errors of predictions, over frames
    events/               TensorBoard events
    checkpoints/          all that is needed to go on
    policy/               the exported policy, a SavedModel
    film.mp4              a game by the trained policy, if its task has images
    evaluation.json       the last `evaluate`
    worth.csv, worth.png  how far back the gradient reaches, as the last `worth` measured it
    .lock                 there while a process trains the run, or exports into its folder
    .evaluation.lock      there while a process evaluates the run
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
        self.film = os.path.join(self.path, "film.mp4")
        self.evaluation = os.path.join(self.path, "evaluation.json")
        self.worth = os.path.join(self.path, "worth.csv")
        self.worth_figure = os.path.join(self.path, "worth.png")
        self._lock = None

    def holds_run(self):
        """Whether there is something to resume, evaluate or export: a config and a first checkpoint."""
        return os.path.lexists(self.config) and os.path.lexists(os.path.join(self.checkpoints, "checkpoint"))

    def lock(self):
        """Takes the lock of the process that trains this run, or writes into its folder otherwise, until `close`.

        The folder is made if there is none, and removed by `close` if nothing else came into it.

        Raises:
          UsageError: another process holds the lock, or the folder cannot be written.
        """
        try:
            self._lock = Lock(
                os.path.join(self.path, ".lock"), "is training this run, exporting into it or measuring it"
            )
        except OSError as error:
            raise UsageError(f"{self.path}: cannot write into this folder ({error.strerror})") from error

    def lock_evaluation(self):
        """Like `lock`, for the process that evaluates this run. Does nothing if results cannot be written anyway."""
        with contextlib.suppress(OSError):
            self._lock = Lock(os.path.join(self.path, ".evaluation.lock"), "is evaluating this run")

    def close(self):
        """Releases the lock, if this object holds one."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def check_kinds(self):
        """Raises UsageError for a folder in the place of a file, a file in that of a folder, or a pipe for either."""
        files = (self.config, self.record, self.metrics, self.curve, self.film, self.evaluation)
        for path in (*files, self.worth, self.worth_figure):
            if os.path.lexists(path) and not os.path.isfile(path):
                raise UsageError(f"{path}: must be a file")
        for path in (self.events, self.checkpoints, self.policy):
            if os.path.lexists(path) and not os.path.isdir(path):
                raise UsageError(f"{path}: must be a folder")
            for inner in (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names):
                if os.path.exists(inner) and not os.path.isfile(inner):  # a pipe would wait for a reader
                    raise UsageError(f"{inner}: must be a file")

    def scratch(self):
        """A folder for another process of this run: its checkpoints are this one's, all else goes when it goes."""
        folder = tempfile.TemporaryDirectory()
        run = RunFolder(folder.name)
        run.checkpoints, run._folder = self.checkpoints, folder
        return run

    def read_record(self):
        """The content of run.json, {} if there is none. Raises UsageError if it is not such a record."""
        record = read_json(self.record, {})
        if not isinstance(record, dict):
            raise UsageError(f"{self.record}: must hold a dict, got {shown(record)}")
        for name, kind in _FIELDS.items():
            value = record.get(name)
            if value is not None and type(value) is not kind:
                raise UsageError(f"{self.record}: {name} must be of type {kind.__name__}, got {shown(value)}")
        return record

    def write_record(self, **changes):
        """Merges `changes` into run.json."""
        write_json(self.record, {**self.read_record(), "version": keras_rtrl.__version__, **changes})


def open_run(path):
    """The RunFolder at `path`. Raises UsageError if `path` holds no run, or one with a broken configuration."""
    run = RunFolder(path)
    if not os.path.isdir(run.path):
        raise UsageError(f"{path}: {'is no' if os.path.lexists(path) else 'no such'} run folder")
    if not run.holds_run():
        for folder in (run.path, run.checkpoints):
            if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                raise UsageError(f"{folder}: cannot read this folder")
        raise UsageError(f"{path}: not a run folder (it needs config.gin and a checkpoint in checkpoints/)")
    run.check_kinds()
    if not read_text(run.config).strip():
        raise UsageError(f"{run.config}: is empty")
    run.read_record()
    return run


def new_run(path):
    """The RunFolder of a new run, still to be made. Raises UsageError if it holds a run or cannot be written."""
    run = RunFolder(path)
    if run.holds_run():
        raise UsageError(f"{path}: holds a run already; go on with it by --resume {path}, or choose another --out")
    check_writable(path)
    run.check_kinds()
    return run


def run_around(path):
    """The RunFolder that the folder `path` is, or lies in; one for `path` itself if it lies in no run."""
    folder = os.path.realpath(path)
    while not RunFolder(folder).holds_run():
        folder, name = os.path.split(folder)
        if not name:
            return RunFolder(path)
    return RunFolder(folder)


def read_bytes(path):
    """The content of a file, None if there is none. Raises UsageError if it cannot be read."""
    try:
        if os.path.lexists(path) and not os.path.isfile(path):  # reading a pipe would never end
            raise UsageError(f"{path}: must be a file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > 2**30:  # no run leaves a file so long; reading it would fill the memory
                raise UsageError(f"{path}: is broken: it has {size} bytes")
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path, torn=False):
    """The text of a file, None if there is none. If the file may be `torn`, the text ends with its last whole line.

    Raises UsageError if it cannot be read, or is no text.
    """
    content = read_bytes(path)
    if content is None:
        return None
    try:
        text = content[: content.rfind(b"\n") + 1 if torn else None].decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is broken: no text ({one_line(error)})") from error
    if "\0" in text:
        raise UsageError(f"{path}: is broken: no text (it has bytes of 0)")
    return text


def read_json(path, missing):
    """The content of a JSON file, `missing` if there is none. Raises UsageError if it cannot be read, or is no JSON."""
    text = read_text(path)
    try:
        content = missing if text is None else json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # letters that neither a figure nor the screen can show
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is broken ({one_line(error)})") from error
    return content


def check_writable(path):
    """Raises UsageError if the folder `path` cannot be made, or files in it. Leaves nothing behind."""
    existing, missing = os.path.abspath(path), []
    while not os.path.lexists(existing):
        existing, name = os.path.split(existing)
        missing.append(name)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        longest = os.pathconf(existing, "PC_NAME_MAX")
        if any(len(os.fsencode(name)) > longest for name in missing):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        # what /proc answers to a new file would read as if the folder were missing
        reason = "it takes no files" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise UsageError(f"{path}: cannot write into this folder ({existing}: {reason})") from error


@contextlib.contextmanager
def writing(path):
    """Gives what goes wrong in writing `path` as an OSError that names it, TensorFlow's errors too."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from error
    except tf.errors.OpError as error:
        reason = one_line(error.message).rpartition("; ")[2].partition(" [Op:")[0]
        number = next((code for code in errno.errorcode if os.strerror(code) == reason), errno.EIO)
        raise OSError(number, reason, path) from error


def sync(*paths):
    """Returns when these files and folders are on the disk, as they must be to outlast a crash of the machine."""
    for path in paths:
        with writing(path):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a file system that syncs no folders
                    raise
            finally:
                os.close(file)


def write_text(path, text):
    """Writes a file atomically: a reader, another writer, a kill or a crash finds the old text or the new one."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path):
    """Yields a path of this process alone, ending as `path` does; what is written there replaces `path` at once."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")
    try:
        with writing(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(folder or ".")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_json(path, content):
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")
