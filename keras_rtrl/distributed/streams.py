"""The learner's record of its streams: what it has learnt of each, and where each stopped."""

import collections

import numpy as np
import tensorflow as tf

Place = collections.namedtuple("Place", ["life", "end"])


class StreamBank:
    """What an agent keeps of each stream, for all streams of all actors.

    An agent learns from B streams at a time. Of as many it holds the carry (and the returns under way, of scaled
    rewards) itself; of more, those of a batch are put into the agent before it learns and taken back after.

    Args:
      agent: a RolloutAgent.
      actors: number of actors.
      streams: E, streams of each.
      rollout: T, steps of a rollout.

    Attributes:
      restarts: times that an actor's streams began anew, after its process had died.
      gaps: rollouts that did not begin where the learner's carry of their streams had stopped.
    """

    def __init__(self, agent, actors, streams, rollout):
        self._agent, self._streams, self._rollout = agent, streams, rollout
        self._places = [None] * actors
        scaler = agent.reward_scaler
        self._variables = (*agent.carry, *(() if scaler is None else (scaler._returns,)))
        self._bank = None
        if actors * streams > self._variables[0].shape[0]:
            self._bank = [
                tf.Variable(tf.zeros([actors * streams, *v.shape[1:]], v.dtype), trainable=False)
                for v in self._variables
            ]
        self._load = tf.function(self._load_rows)
        self._store = tf.function(self._store_rows)
        self.restarts = self.gaps = 0

    def fits(self, actor, rollout):
        """Whether a rollout comes after all that was learnt of its streams; one that does not must be dropped."""
        place = self._places[actor]
        return place is None or place.life != rollout.life or rollout.start >= place.end

    def load(self, actors, rollouts):
        """Puts the streams of a batch into the agent: rows [i E, (i + 1) E) are those of actors[i].

        Where a rollout does not begin where the carry of its streams stopped, the traces are zeroed and the state is
        the one that acted.

        Args:
          actors: their numbers, no two the same.
          rollouts: their Rollouts.
        """
        rows = self._rows(actors)
        if self._bank is not None:
            self._load(rows)
        broken = [not self._continues(actor, rollout) for actor, rollout in zip(actors, rollouts, strict=True)]
        if any(broken):
            mask = np.repeat(broken, self._streams)
            states = [np.concatenate(parts) for parts in zip(*(rollout.state for rollout in rollouts), strict=True)]
            for i, variable in enumerate(self._variables):
                fresh = states[i] if i < len(states) else tf.zeros_like(variable)
                variable.assign(tf.where(mask.reshape([-1] + [1] * (variable.shape.rank - 1)), fresh, variable))

    def store(self, actors, rollouts):
        """Takes the streams of a batch back, after the agent has learnt from it."""
        if self._bank is not None:
            self._store(self._rows(actors))
        for actor, rollout in zip(actors, rollouts, strict=True):
            self._places[actor] = Place(rollout.life, rollout.start + self._rollout)

    def values(self):
        """What is kept of all streams: list of arrays [actors E, ...], the carry's parts first."""
        return [variable.numpy() for variable in self._bank or self._variables]

    def _continues(self, actor, rollout):
        place = self._places[actor]
        if place == Place(rollout.life, rollout.start):
            return True
        if place is None or place.life != rollout.life:
            self.restarts += place is not None
            self.gaps += rollout.start > 0
        else:
            self.gaps += 1
        return False

    def _rows(self, actors):
        return tf.constant([a * self._streams + i for a in actors for i in range(self._streams)], tf.int32)

    def _load_rows(self, rows):
        for variable, bank in zip(self._variables, self._bank, strict=True):
            variable.assign(tf.gather(bank, rows))

    def _store_rows(self, rows):
        for variable, bank in zip(self._variables, self._bank, strict=True):
            bank.scatter_update(tf.IndexedSlices(variable.value(), rows))
