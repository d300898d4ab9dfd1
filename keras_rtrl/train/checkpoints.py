"""Checkpoints of a whole run: written atomically, never with a number that is not finite."""

import contextlib
import json

import numpy as np
import tensorflow as tf

from keras_rtrl._checks import number, shown, whole_number
from keras_rtrl._errors import UsageError, one_line

_COUNTED = ("frames", "updates", "games", "seconds", "recent_returns", "running_returns", "unscored")


class Counters(tf.train.experimental.PythonState):
    """What the loop counts, kept inside the checkpoint so that it can never disagree with the weights beside it.

    Attributes:
      frames: environment frames.
      updates: calls of the agent's train().
      games: whole games finished.
      seconds: of training, over all sessions.
      recent_returns: list, of the last whole games.
      running_returns: list, of the game that each stream is in, where the loop adds the rewards up itself.
      unscored: list of the last steps' (prediction, best prediction, cumulant), where the agent predicts.
    """

    def __init__(self):
        super().__init__()
        self.frames = self.updates = self.games = 0
        self.seconds = 0.0
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
            elif name == "seconds":
                value = number(name, value, low=0)
            elif not isinstance(value, list) or not np.isfinite(np.asarray(value, float)).all():
                raise ValueError(f"{name} must be a list of numbers, got {shown(value)}")
            setattr(self, name, value)


class Checkpoints:
    """Saves and restores a run: counters, network, agent (optimiser and carry too) and a runner's own variables.

    TensorFlow writes the data first, then renames the index, then the file that names the newest checkpoint: a process
    killed at any time leaves the checkpoint before.

    Where an agent's streams are spread over devices or processes, a checkpoint is the same as with one device, and can
    be restored onto any number of them. Every process calls save() and restore(), in one order; the chief writes.
    """

    def __init__(self, run, counters, agent, state):
        self._run, self._counters, self._agent = run, counters, agent
        watched = [*agent.network.variables, *agent.optimizer.variables, *agent.variables, *state]
        self._watched = list({variable.ref(): variable for variable in watched}.values())
        checkpoint = tf.train.Checkpoint(network=agent.network, agent=agent, state=list(state), counters=counters)
        self._checkpoint = checkpoint
        self._manager = tf.train.CheckpointManager(checkpoint, run.checkpoints, max_to_keep=2)
        self._saved = saved_updates(run)

    def save(self):
        """Saves, unless this update is saved already; on a NaN or infinity raises ArithmeticError instead."""
        if self._counters.updates == self._saved:
            return
        agent = self._agent
        agent.gather_streams()
        floating = (variable for variable in self._watched if variable.dtype.is_floating)
        bad = next((variable.name for variable in floating if not np.all(np.isfinite(variable.numpy()))), None)
        if agent.streams.any(bad is not None):
            raise ArithmeticError(f"{bad or 'a variable of another process'} is not finite")
        if agent.streams.is_chief:
            self._manager.save(checkpoint_number=self._counters.updates)
        agent.streams.any(False)  # no process goes on before the chief has written
        self._saved = self._counters.updates

    def restore(self):
        """Restores the newest checkpoint; raises UsageError where it does not hold every variable."""
        with _as_usage_error(self._run):
            newest = tf.train.latest_checkpoint(self._run.checkpoints)  # a manager knows its own saves only
            self._checkpoint.restore(newest).assert_existing_objects_matched()
        self._agent.scatter_streams()


def saved_updates(run):
    """Number of updates before the newest checkpoint of a run, None where there is no checkpoint."""
    path = tf.train.latest_checkpoint(run.checkpoints)
    return None if path is None else int(path.rpartition("-")[2])


def restore_network(run, network, reward_scaler=None):
    """Restores a network, and the statistics of a RewardScaler, from the newest checkpoint of a run, and nothing else.

    Raises UsageError where they misfit.
    """
    path = tf.train.latest_checkpoint(run.checkpoints)
    parts = {"network": network}
    if reward_scaler is not None:
        scaler = tf.train.Checkpoint(statistics=reward_scaler.statistics)
        parts["agent"] = tf.train.Checkpoint(_reward_scaler=scaler)
    with _as_usage_error(run):
        tf.train.Checkpoint(**parts).restore(path).expect_partial().assert_existing_objects_matched()


def restore_encoder(run, network):
    """Restores a network's encoder, with the normalisation before it, from the newest checkpoint of a run.

    Raises UsageError where the run's encoder has other layers or other shapes.
    """
    path = tf.train.latest_checkpoint(run.checkpoints)
    with _as_usage_error(run):
        saved, own = tf.train.CheckpointView(path), tf.train.TrackableView(network)
        theirs = _subtrees(saved, saved.children(0)["network"], network.encoder_parts)
        if theirs != _subtrees(own, network, network.encoder_parts):
            raise UsageError(f"{run.path}: its encoder has other layers than this network's")
        parts = {name: getattr(network, name) for name in theirs}
        checkpoint = tf.train.Checkpoint(network=tf.train.Checkpoint(**parts))
        checkpoint.restore(path).expect_partial().assert_existing_objects_matched()


def _subtrees(view, node, names):
    """The names of all that hangs on the children `names` of a node, as dicts in dicts."""
    children = view.children(node)
    return {name: _subtrees(view, child, view.children(child)) for name, child in children.items() if name in names}


@contextlib.contextmanager
def _as_usage_error(run):
    try:
        yield
    except (AssertionError, ValueError, IndexError, tf.errors.OpError) as error:
        reason = one_line(error)
        reason = reason if len(reason) <= 200 else f"{reason[:200]}..."
        raise UsageError(f"{run.checkpoints}: broken, or of another configuration ({reason})") from error
