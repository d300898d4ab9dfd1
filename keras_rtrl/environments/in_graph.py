"""The common parts of in-graph tasks: their random words, and two forms that agree step for step.

A task's randomness is one row of 32-bit words for each (seed, stream, step): row `stream` of a Philox draw keyed by
[seed, step]. The number `step` counts all time steps of a stream, over episodes. So the batched form (eager, in graphs
and under XLA) and the gymnasium form play the same.
"""

import functools

import gymnasium
import numpy as np
import tensorflow as tf
from tf_agents.environments import tf_environment
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl._checks import fits_memory, one_of, shown, whole_number
from keras_rtrl.environments.vector import checked_action

ENGINES = ("auto", "graph", "gymnasium")
LONGEST = 2**31 - 4  # of a corridor or a wait: int32 counts its steps, and the two or three around it


class InGraphTask(tf_environment.TFEnvironment):
    """Streams of a task as a TFEnvironment whose step is pure graph operations: it runs under jit_compile.

    Subclasses implement `_advance`, a pure function; their state lives here.

    Args:
      observation_spec, action_spec: tensor specs of one stream.
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
      state: tuple of tensors [B, ...] with the dtypes and shapes of the task's state; their values are never used.
    """

    def __init__(self, observation_spec, action_spec, num_envs, seed, state):
        super().__init__(ts.time_step_spec(observation_spec), action_spec, num_envs)
        self._array_action_spec = tensor_spec.to_array_spec(action_spec)
        self._seed = new_seed() if seed is None else whole_number("seed", seed, low=0)
        self._clock = tf.Variable(-1, dtype=tf.int64, trainable=False, name="clock")
        self._state = tuple(tf.Variable(part, trainable=False, name="state") for part in state)
        self._time_step = tf.nest.map_structure(
            lambda spec: tf.Variable(tf.zeros([num_envs, *spec.shape], spec.dtype), trainable=False),
            self.time_step_spec(),
        )
        # A LAST makes the first step a reset, as TF-Agents asks for.
        self._time_step.step_type.assign(tf.fill([num_envs], ts.StepType.LAST))

    @property
    def variables(self):
        """All state, in a fixed order, for tf.train.Checkpoint."""
        return (self._clock, *self._state, *self._time_step)

    def _advance(self, restart, action, state, words):
        """One step of every stream.

        Args:
          restart: bool [B], the streams that begin an episode; their action and old state mean nothing.
          action: int32 [B].
          state: tuple of tensors, as given to the constructor.
          words: function of a number n to this step's random words, int32 [B, n].

        Returns:
          (state, observation, reward float32 [B], terminated bool [B], truncated bool [B]); the last three are 0 and
          False if `restart`.
        """
        raise NotImplementedError

    def _current_time_step(self):
        tf.cond(self._clock < 0, lambda: self._reset().step_type, lambda: tf.identity(self._time_step.step_type))
        return tf.nest.map_structure(tf.identity, self._time_step)

    def _reset(self):
        return self._take(tf.ones([self.batch_size], tf.bool), tf.zeros([self.batch_size], tf.int32))

    def _step(self, action):
        action = tf.convert_to_tensor(action)
        if tf.executing_eagerly():
            checked_action(action, self._array_action_spec, self.batch_size)
        elif not action.dtype.is_integer or not action.shape.is_compatible_with([self.batch_size]):
            shape = f"({self.batch_size},)"
            raise ValueError(f"action must be integers of shape {shape}, got {action.dtype.name} of {action.shape}.")
        return self._take(tf.equal(self._time_step.step_type, ts.StepType.LAST), tf.cast(action, tf.int32))

    def _take(self, restart, action):
        words = functools.partial(draw, self._seed, self._clock.assign_add(1, read_value=True), self.batch_size)
        old = tuple(part.value() for part in self._state)
        state, observation, reward, terminated, truncated = self._advance(restart, action, old, words)
        last = terminated | truncated
        time_step = ts.TimeStep(
            step_type=tf.where(restart, ts.StepType.FIRST, tf.where(last, ts.StepType.LAST, ts.StepType.MID)),
            reward=reward,
            discount=tf.where(terminated, 0.0, 1.0),
            observation=observation,
        )
        for variable, value in zip(self._state, state, strict=True):
            variable.assign(value)
        tf.nest.map_structure(lambda variable, value: variable.assign(value), self._time_step, time_step)
        return time_step


class InGraphEnv(gymnasium.Env):
    """One stream of a task as a gymnasium environment, equal to stream `stream` of the batched form of the same seed.

    A `reset` after an episode's end is one step of the stream's life, as FIRST is in the batched form;
    `reset(seed=...)` starts a new life. Subclasses set the spaces, and implement `_begin(words) -> observation` and
    `_advance(action, words) -> (observation, reward, terminated)`, words being a list of ints.
    """

    def __init__(self, stream, words=1):
        self._stream = whole_number("stream", stream, low=0, high=2**31 - 2)
        fits_memory(f"stream={stream}", (self._stream + 1) * words * 4)
        self._words = words
        self._seed = None
        self._playing = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed = new_seed() if seed is None else whole_number("seed", seed, low=0)
            self._clock = -1
        self._playing = True
        return self._begin(self._next_words()), {}

    def step(self, action):
        if not self._playing:
            raise gymnasium.error.ResetNeeded("call reset before step, and again after an episode's end.")
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an int in 0..{self.action_space.n - 1}, got {shown(action)}.")
        observation, reward, terminated = self._advance(action, self._next_words())
        self._playing = not terminated
        return observation, reward, terminated, False, {}

    def _next_words(self):
        self._clock += 1
        seed, step = tf.constant(self._seed, tf.int64), tf.constant(self._clock, tf.int64)
        return _compiled_draw(seed, step, self._stream + 1, self._words).numpy()[-1].tolist()


def draw(seed, step, num_streams, words=1):
    """Random words int32 [num_streams, words] of one step.

    Philox counts, so a stream's words are the same in any number of streams.
    """
    key = tf.stack([tf.convert_to_tensor(seed, tf.int64), tf.cast(step, tf.int64)])
    return tf.random.stateless_uniform(
        [num_streams, words], key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )


_compiled_draw = tf.function(draw, autograph=False)


def engine_of(engine):
    """`engine`, what a task that has both forms runs in. Raises ValueError if it is none of `ENGINES`."""
    return one_of("engine", engine, ENGINES)


def runs_in_graph(name, engine, names):
    """Whether `engine` makes the task `name` in the graph, if those in `names` have that form.

    Raises:
      ValueError: `engine` is none of `ENGINES`, or "graph" for a task that lacks the form.
    """
    if engine_of(engine) == "graph" and name not in names:
        raise ValueError(f"engine must be 'auto' or 'gymnasium' for {name}, which has no form in the graph.")
    return engine != "gymnasium" and name in names


def new_seed():
    """A seed never used before, from 0 to 2**63 - 1."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))


def bit(words, index):
    """Bit `index` of int32 words, as int32 0 or 1; the two broadcast."""
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, index), 1)
