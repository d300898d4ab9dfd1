"""Checkpoints of a whole run: written atomically, never with a number that is not finite."""

import contextlib
import functools
import glob
import json
import os
import re

import numpy as np
import tensorflow as tf

from keras_rtrl._checks import number, shown, whole_number
from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.train.run_folder import read_text, sync, write_text, writing

_COUNTED = (
    "frames",
    "updates",
    "games",
    "seconds",
    "processor_seconds",
    "recent_returns",
    "running_returns",
    "unscored",
)


class Counters(tf.train.experimental.PythonState):
    """The loop's counters. The checkpoint holds them too, so that they always agree with its weights.

    Attributes:
      frames: environment frames.
      updates: calls of the agent's train().
      games: whole games finished.
      seconds: of training, over all sessions.
      processor_seconds: what cores spent on it, over all sessions; None if an earlier version, which did not count it,
        made a part of it.
      recent_returns: list of the returns of the last whole games.
      running_returns: list of the return so far of each stream's game, if the loop itself adds up the rewards.
      unscored: list of (prediction, best prediction, cumulant) of the last steps, if the agent predicts.
    """

    def __init__(self):
        super().__init__()
        self.frames = self.updates = self.games = 0
        self.seconds = self.processor_seconds = 0.0
        self.recent_returns, self.running_returns, self.unscored = [], [], []

    def serialize(self):
        return json.dumps({name: getattr(self, name) for name in _COUNTED})

    def deserialize(self, string_value):
        """Takes what `serialize` gave. Raises ValueError for anything else."""
        counted = json.loads(string_value)
        if not isinstance(counted, dict) or not set(counted) <= set(_COUNTED):
            raise ValueError(f"counters must be some of {', '.join(_COUNTED)}, got {shown(counted)}")
        for name, value in counted.items():
            if name in ("frames", "updates", "games"):
                value = whole_number(name, value, 0)
            elif name in ("seconds", "processor_seconds"):
                value = None if value is None and name != "seconds" else number(name, value, low=0)
            elif not isinstance(value, list) or not np.isfinite(np.asarray(value, float)).all():
                raise ValueError(f"{name} must be a list of numbers, got {shown(value)}")
            setattr(self, name, value)
        if "processor_seconds" not in counted:
            self.processor_seconds = None


class Checkpoints:
    """Saves and restores a run: counters, network, agent (optimiser and carry too) and a runner's own variables.

    TensorFlow writes the data first, then renames the index. All is on the disk before the file `checkpoint` names it
    and before an older checkpoint is removed: a kill or a crash of the machine at any time leaves the one before.

    If an agent's streams are spread over devices or processes, a checkpoint is the same as with one device, and can be
    restored onto any number of them. Every process calls save() and restore(), in the same order; the chief writes.
    """

    def __init__(self, run, counters, agent, state):
        self._run, self._counters, self._agent = run, counters, agent
        watched = [*agent.network.variables, *agent.optimizer.variables, *agent.variables, *state]
        self._watched = list({variable.ref(): variable for variable in watched}.values())
        self._checkpoint = tf.train.Checkpoint(network=agent.network, agent=agent, state=list(state), counters=counters)
        self._saved = None

    def save(self):
        """Saves, unless this update is saved already; on a NaN or infinity raises ArithmeticError instead."""
        if self._counters.updates == self._saved:
            return
        agent = self._agent
        agent.gather_streams()
        floating = (variable for variable in self._watched if variable.dtype.is_floating)
        bad = next((variable.name for variable in floating if not np.all(np.isfinite(variable.numpy()))), None)
        if agent.streams.any_process(bad is not None):
            raise ArithmeticError(f"{bad or 'a variable of another process'} is not finite")
        if agent.streams.is_chief:
            self._write()
        agent.streams.wait_for_all()  # no process goes on before the chief has written
        self._saved = self._counters.updates

    def _write(self):
        folder = self._run.checkpoints
        path = os.path.join(folder, f"ckpt-{self._counters.updates}")
        with writing(path):
            os.makedirs(folder, exist_ok=True)
            self._checkpoint.save_counter.assign_add(1)  # makes it: what is restored must hold it
            self._checkpoint.write(path)
        sync(*_files(path), folder, self._run.path)
        names = [f"ckpt-{updates}" for updates in (self._saved, self._counters.updates) if updates is not None]
        state = [f'model_checkpoint_path: "{names[-1]}"', *(f'all_model_checkpoint_paths: "{name}"' for name in names)]
        write_text(_state(self._run), "".join(f"{line}\n" for line in state))
        for name in os.listdir(folder):
            if name.startswith("ckpt-") and name.partition(".")[0] not in names:
                with writing(os.path.join(folder, name)), contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.remove(os.path.join(folder, name))

    def restore(self):
        """Restores the newest checkpoint; raises UsageError where it does not hold every variable."""
        with _as_usage_error(self._run):
            self._checkpoint.restore(newest(self._run)).assert_existing_objects_matched()
        self._saved = self._counters.updates
        self._agent.scatter_streams()


def _state(run):
    return os.path.join(run.checkpoints, "checkpoint")


def _updates(path):
    return int(path.rpartition("-")[2])


def _files(path):
    return [f"{path}.index", *sorted(glob.glob(f"{glob.escape(path)}.data-*-of-*"))]


def newest(run):
    """The path of a run's newest checkpoint, None for a run without checkpoints.

    Raises:
      UsageError: the file that names it, or the checkpoint itself, is broken.
    """
    text = read_text(_state(run))
    if text is None:
        return None
    match = re.search(r'^model_checkpoint_path: "(ckpt-\d+)"$', text, re.MULTILINE)
    if match is None:
        raise UsageError(f"{_state(run)}: is broken: it names no checkpoint of its folder")
    path = os.path.join(run.checkpoints, match[1])
    fault = _fault(path, *map(_stamp, _files(path)))
    if fault is not None:
        others = re.findall(r'^all_model_checkpoint_paths: "(ckpt-\d+)"$', text, re.MULTILINE)
        before = os.path.join(run.checkpoints, next((name for name in reversed(others) if name != match[1]), match[1]))
        whole = before != path and _fault(before, *map(_stamp, _files(before))) is None
        hint = f"; {os.path.basename(before)} is whole: to take it, name it in {_state(run)}" if whole else ""
        raise UsageError(f"{path}: this checkpoint is broken: {fault}{hint}")
    return path


def _stamp(file):
    return os.stat(file)[:9] if os.path.isfile(file) else None


@functools.lru_cache(maxsize=16)
def _fault(path, *stamps):
    """What is wrong with a checkpoint whose files have these stamps, None if every tensor of it can be read.

    Its check sums find what is torn.
    """
    if None in stamps or len(stamps) < 2:
        return "it lacks its index or its data"
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        return _shortened(error)
    return None


def saved_updates(run):
    """Number of updates before the newest checkpoint of a run, None if there is no checkpoint."""
    path = newest(run)
    return None if path is None else _updates(path)


def restore_network(run, network, reward_scaler=None):
    """Restores a network, and the statistics of a RewardScaler, from the newest checkpoint of a run, and nothing else.

    Returns the number of updates before that checkpoint. Raises UsageError if they do not fit.
    """
    parts = {"network": network}
    if reward_scaler is not None:
        scaler = tf.train.Checkpoint(statistics=reward_scaler.statistics)
        parts["agent"] = tf.train.Checkpoint(_reward_scaler=scaler)

    def restore(path):
        tf.train.Checkpoint(**parts).restore(path).expect_partial().assert_existing_objects_matched()
        return _updates(path)

    return _of_newest(run, restore)


def restore_agent(run, agent):
    """Restores an agent of one replica, its network and optimiser too, from the newest checkpoint of a run.

    Raises UsageError if they do not fit.
    """

    def restore(path):
        checkpoint = tf.train.Checkpoint(network=agent.network, agent=agent)
        checkpoint.restore(path).expect_partial().assert_existing_objects_matched()

    _of_newest(run, restore)


def restore_encoder(run, network):
    """Restores a network's encoder, with the normalisation before it, from the newest checkpoint of a run.

    Raises UsageError if the run's encoder has other layers or other shapes.
    """

    def restore(path):
        saved, own = tf.train.CheckpointView(path), tf.train.TrackableView(network)
        theirs = _subtrees(saved, saved.children(0)["network"], network.encoder_parts)
        if theirs != _subtrees(own, network, network.encoder_parts):
            raise UsageError(f"{run.path}: its encoder has other layers than this network's")
        parts = {name: getattr(network, name) for name in theirs}
        checkpoint = tf.train.Checkpoint(network=tf.train.Checkpoint(**parts))
        checkpoint.restore(path).expect_partial().assert_existing_objects_matched()

    _of_newest(run, restore)


def _of_newest(run, restore):
    """restore(path of the newest checkpoint); once more while a run that goes on replaces that checkpoint."""
    path = newest(run)
    while True:
        try:
            with _as_usage_error(run):
                return restore(path)
        except UsageError:
            before, path = path, newest(run)
            if path == before:
                raise


def _subtrees(view, node, names):
    """The names of all that hangs on the children `names` of a node, as dicts in dicts."""
    children = view.children(node)
    return {name: _subtrees(view, child, view.children(child)) for name, child in children.items() if name in names}


def _shortened(error):
    reason = one_line(error)
    return reason if len(reason) <= 200 else f"{reason[:200]}..."


@contextlib.contextmanager
def _as_usage_error(run):
    try:
        yield
    except (AssertionError, ValueError, IndexError, KeyError, TypeError, tf.errors.OpError) as error:
        raise UsageError(f"{run.checkpoints}: broken, or of another configuration ({_shortened(error)})") from error
