"""The learner's record of its streams: the carry of each, and the step at which each stopped."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tf_agents.typing import types

Place = collections.namedtuple("Place", ["life", "end"])


class StreamBank:
    """The values that an agent keeps for each stream, for all streams of all actors.

    An agent learns from B streams at a time. It holds the carry of B streams (and with scaled rewards their returns so
    far). If the actors have more streams, the bank holds the values of all. Before the agent learns, the values of the
    batch's streams are put into the agent; afterwards they are taken back.

    Args:
      agent: a RolloutAgent.
      num_actors: number of actors.
      num_streams: E, streams of each actor.
      rollout_length: T, steps of a rollout.

    Attributes:
      restarts: how often the streams of an actor started again, after its process had died.
      gaps: number of rollouts that did not continue the learner's carry of their streams.
    """

    def __init__(self, agent: Any, *, num_actors: int, num_streams: int, rollout_length: int):
        self._agent, self._num_streams, self._rollout_length = agent, num_streams, rollout_length
        self._places = [None] * num_actors
        values = agent.stream_values()
        self._bank = None
        count = num_actors * num_streams
        if count > agent.streams.worker:
            with tf.device("CPU:0"):  # a GPU may have room only for the streams of one batch
                self._bank = tf.nest.map_structure(
                    lambda x: tf.Variable(tf.zeros([count, *x.shape[1:]], x.dtype), trainable=False), values
                )
        self.restarts = self.gaps = 0

    @property
    def variables(self) -> list[tf.Variable]:
        """The bank's variables: a list of [actors E, ...], empty if the agent itself holds all streams."""
        return tf.nest.flatten(self._bank or ())

    def fits(self, actor: int, rollout: Any) -> bool:
        """Whether a rollout comes after all steps that were learnt of its streams; otherwise it must be dropped."""
        place = self._places[actor]
        return place is None or place.life != rollout.life or rollout.start >= place.end

    def load(self, actors: Sequence[int], rollouts: Sequence[Any]) -> None:
        """Puts the streams of a batch into the agent: rows [i E, (i + 1) E) are those of actors[i].

        If a rollout does not continue the carry of its streams, the traces are zeroed, and the state is the one that
        acted.

        Args:
          actors: numbers of actors, no two the same.
          rollouts: the Rollouts of these actors.
        """
        broken = [not self._continues(actor, rollout) for actor, rollout in zip(actors, rollouts, strict=True)]
        for actor, rollout in zip(actors, rollouts, strict=True):
            self._count_break(actor, rollout)
        if self._bank is None and not any(broken):
            return
        if self._bank is None:
            values = self._agent.stream_values()
        else:
            rows = self._rows(actors)
            values = tf.nest.map_structure(lambda bank: tf.gather(bank, rows), self._bank)
        if any(broken):
            mask = np.repeat(broken, self._num_streams)
            states = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *(r.state for r in rollouts))
            carry, *others = tf.nest.map_structure(tf.zeros_like, values)
            carry = tuple(part._replace(state=acting.state) for part, acting in zip(carry, states, strict=True))
            values = tf.nest.map_structure(
                lambda new, value: tf.where(mask.reshape([-1] + [1] * (value.shape.rank - 1)), new, value),
                (carry, *others),
                values,
            )
        self._agent.assign_stream_values(values)

    def store(self, actors: Sequence[int], rollouts: Sequence[Any]) -> None:
        """Takes the streams of a batch back, after the agent has learnt from it."""
        if self._bank is not None:
            rows = self._rows(actors)
            tf.nest.map_structure(
                lambda bank, value: bank.scatter_update(tf.IndexedSlices(value, rows)),
                self._bank,
                self._agent.stream_values(),
            )
        for actor, rollout in zip(actors, rollouts, strict=True):
            self._places[actor] = Place(rollout.life, rollout.start + self._rollout_length)

    def values(self) -> types.NestedArray:
        """The values of all streams, arrays [actors E, ...], in the structure of `agent.stream_values`."""
        return tf.nest.map_structure(lambda value: value.numpy(), self._bank or self._agent.stream_values())

    def _continues(self, actor, rollout):
        return self._places[actor] == Place(rollout.life, rollout.start)

    def _count_break(self, actor, rollout):
        """Counts a restart or a gap, if the rollout does not continue the last one."""
        place = self._places[actor]
        if place is None or place.life != rollout.life:
            self.restarts += place is not None
            self.gaps += rollout.start > 0
        elif place.end != rollout.start:
            self.gaps += 1

    def _rows(self, actors):
        return tf.constant([a * self._num_streams + i for a in actors for i in range(self._num_streams)], tf.int32)
