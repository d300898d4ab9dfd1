"""T-maze: a cue seen once, a corridor walked by itself, and a choice that only the cue can tell.

Observation, float32 [12]: one-hot {cue left, cue right, corridor, junction}, then 8 random distractor bits drawn anew
at every step. The first observation shows the cue, the next `corridor` ones the corridor, the one after the junction.
There the action counts: 0 is right after cue left, 1 after cue right, 2 and 3 never; reward 1 if right, else -1, and
the episode terminates. The observation at the end is the junction's with a new step's bits. Before, actions have no
effect and rewards are 0. Blind chance is 25 %, knowing the two arms 50 %.

All randomness is one 32-bit word for each (seed, stream, step), where step counts every time step of a stream's life,
over episodes: element `stream` of a Philox draw keyed by [seed, step]. Its bits 0 to 7 are the distractors, bit 8 the
cue where an episode starts. So both forms below agree step for step, in eager, graph and XLA alike.
"""

import gymnasium
import numpy as np
import tensorflow as tf
from tf_agents.environments import tf_environment
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl.environments.registry import unknown_name

_DISTRACTORS = 8
_WIDTH = 4 + _DISTRACTORS
_ACTIONS = 4


def make(name, num_envs, seed, *, corridor=40):
    """The in-graph T-maze."""
    if name != "TMaze-v0":
        raise unknown_name(name, ["TMaze-v0"])
    return TMaze(num_envs, seed, corridor)


class TMaze(tf_environment.TFEnvironment):
    """`num_envs` T-mazes as a TFEnvironment whose step is pure graph operations: it runs under jit_compile.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
      corridor: number of corridor steps between cue and junction, at least 1.
    """

    def __init__(self, num_envs, seed=None, corridor=40):
        self._corridor = _checked_corridor(corridor)
        self._seed = _new_seed() if seed is None else seed
        observation_spec = tensor_spec.BoundedTensorSpec((_WIDTH,), tf.float32, 0.0, 1.0, name="observation")
        action_spec = tensor_spec.BoundedTensorSpec((), tf.int64, 0, _ACTIONS - 1, name="action")
        super().__init__(ts.time_step_spec(observation_spec), action_spec, num_envs)
        self._clock = tf.Variable(-1, dtype=tf.int64, trainable=False, name="clock")
        self._cue = tf.Variable(tf.zeros([num_envs], tf.int32), trainable=False, name="cue")
        # Starting at an episode's end makes the first step a reset, as TF-Agents asks for.
        end = tf.fill([num_envs], self._corridor + 2)
        self._position = tf.Variable(end, trainable=False, name="position")
        self._time_step = tf.nest.map_structure(
            lambda spec: tf.Variable(tf.zeros([num_envs, *spec.shape], spec.dtype), trainable=False),
            self.time_step_spec(),
        )

    @property
    def variables(self):
        """All state, in a fixed order, for tf.train.Checkpoint."""
        return (self._clock, self._cue, self._position, *self._time_step)

    def _current_time_step(self):
        tf.cond(self._clock < 0, lambda: self._reset().step_type, lambda: tf.identity(self._time_step.step_type))
        return tf.nest.map_structure(tf.identity, self._time_step)

    def _reset(self):
        everywhere = tf.ones([self.batch_size], tf.bool)
        return self._advance(everywhere, tf.zeros([self.batch_size], tf.int32))

    def _step(self, action):
        return self._advance(self._position > self._corridor + 1, tf.cast(action, tf.int32))

    def _advance(self, restart, action):
        clock = self._clock.assign_add(1, read_value=True)
        words = _draw(self._seed, clock, self.batch_size)
        position = tf.where(restart, 0, self._position + 1)
        cue = tf.where(restart, tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, _DISTRACTORS), 1), self._cue)
        last = position == self._corridor + 2
        place = tf.where(position == 0, cue, tf.where(position <= self._corridor, 2, 3))
        bits = tf.bitwise.bitwise_and(tf.bitwise.right_shift(words[:, tf.newaxis], tf.range(_DISTRACTORS)), 1)
        time_step = ts.TimeStep(
            step_type=tf.where(restart, ts.StepType.FIRST, tf.where(last, ts.StepType.LAST, ts.StepType.MID)),
            reward=tf.where(last, tf.where(action == cue, 1.0, -1.0), 0.0),
            discount=tf.where(last, 0.0, 1.0),
            observation=tf.concat([tf.one_hot(place, 4), tf.cast(bits, tf.float32)], axis=1),
        )
        self._position.assign(position)
        self._cue.assign(cue)
        tf.nest.map_structure(lambda variable, value: variable.assign(value), self._time_step, time_step)
        return time_step


class TMazeEnv(gymnasium.Env):
    """One stream of the T-maze as a gymnasium environment, equal to stream `stream` of `TMaze` under the same seed.

    A `reset` after an episode's end is one step of the stream's life, as FIRST is in `TMaze`; `reset(seed=...)` starts
    a new life.

    Args:
      corridor: number of corridor steps between cue and junction, at least 1.
      stream: which stream of the vector this is.
    """

    def __init__(self, corridor=40, stream=0):
        self._corridor = _checked_corridor(corridor)
        self._stream = stream
        self._seed = None
        self._position = None
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (_WIDTH,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(_ACTIONS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed = _new_seed() if seed is None else seed
            self._clock = -1
        word = self._next_word()
        self._cue = word >> _DISTRACTORS & 1
        self._position = 0
        return self._observe(word), {}

    def step(self, action):
        if self._position is None or self._position > self._corridor + 1:
            raise gymnasium.error.ResetNeeded("call reset before step, and again after an episode's end.")
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an int in 0..{_ACTIONS - 1}, got {action!r}.")
        word = self._next_word()
        self._position += 1
        terminated = self._position == self._corridor + 2
        reward = (1.0 if action == self._cue else -1.0) if terminated else 0.0
        return self._observe(word), reward, terminated, False, {}

    def _next_word(self):
        self._clock += 1
        return int(_draw(self._seed, self._clock, self._stream + 1)[-1])

    def _observe(self, word):
        observation = np.zeros(_WIDTH, np.float32)
        observation[self._cue if self._position == 0 else 2 if self._position <= self._corridor else 3] = 1.0
        observation[4:] = [word >> bit & 1 for bit in range(_DISTRACTORS)]
        return observation


def _draw(seed, step, num_streams):
    """Random words int32 [num_streams] of one step; Philox counts, so a stream's word is the same in any width."""
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])
    return tf.random.stateless_uniform([num_streams], key, minval=None, maxval=None, dtype=tf.int32, alg="philox")


def _new_seed():
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))


def _checked_corridor(corridor):
    if not isinstance(corridor, (int, np.integer)) or isinstance(corridor, bool) or corridor < 1:
        raise ValueError(f"corridor must be an int of at least 1, got {corridor!r}.")
    return int(corridor)
