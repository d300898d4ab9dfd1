"""T-maze: a cue seen once, a corridor walked by itself, and a choice that only the cue can tell.

Observation, float32 [12]: one-hot {cue left, cue right, corridor, junction}, then 8 random distractor bits, new
at every step. The first observation shows the cue, the next `corridor` ones the corridor, the one after the junction.
There the action counts: 0 is right after cue left, 1 after cue right, 2 and 3 never; reward 1 if right, else -1, and
the episode terminates. The observation at the end is the junction's with a new step's bits. Before, actions have no
effect and rewards are 0. Blind chance is 25 %, knowing the two arms 50 %.

Bits 0 to 7 of a step's random word are the distractors; bit 8 is the cue if an episode starts.
"""

import gymnasium
import numpy as np
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl._checks import whole_number
from keras_rtrl.environments.in_graph import LONGEST, InGraphEnv, InGraphTask, bit
from keras_rtrl.environments.registry import unknown_name

_DISTRACTORS = 8
_WIDTH = 4 + _DISTRACTORS
_ACTIONS = 4


def in_graph(name, engine):
    del name, engine
    return True


def make(name, num_envs, seed, *, corridor=40):
    """The in-graph T-maze."""
    if name != "TMaze-v0":
        raise unknown_name(name, ["TMaze-v0"])
    return TMaze(num_envs, seed=seed, corridor=corridor)


class TMaze(InGraphTask):
    """`num_envs` T-mazes as a TFEnvironment whose step is pure graph operations: it runs under jit_compile.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
      corridor: number of corridor steps between cue and junction, at least 1.
    """

    def __init__(self, num_envs: int, *, seed: int | None = None, corridor: int = 40):
        self._corridor = whole_number("corridor", corridor, high=LONGEST)
        super().__init__(
            tensor_spec.BoundedTensorSpec((_WIDTH,), tf.float32, 0.0, 1.0, name="observation"),
            tensor_spec.BoundedTensorSpec((), tf.int64, 0, _ACTIONS - 1, name="action"),
            num_envs,
            seed,
            state=(tf.zeros([num_envs], tf.int32), tf.zeros([num_envs], tf.int32)),
        )

    def _advance(self, restart, action, state, words):
        cue, position = state
        word = words(1)
        position = tf.where(restart, 0, position + 1)
        cue = tf.where(restart, bit(word[:, 0], _DISTRACTORS), cue)
        last = tf.equal(position, self._corridor + 2)
        place = tf.where(tf.equal(position, 0), cue, tf.where(position <= self._corridor, 2, 3))
        bits = tf.cast(bit(word, tf.range(_DISTRACTORS)), tf.float32)
        observation = tf.concat([tf.one_hot(place, 4), bits], axis=1)
        reward = tf.where(last, tf.where(tf.equal(action, cue), 1.0, -1.0), 0.0)
        return (cue, position), observation, reward, last, tf.zeros_like(last)


class TMazeEnv(InGraphEnv):
    """One stream of the T-maze as a gymnasium environment, equal to stream `stream` of `TMaze` under the same seed.

    Args:
      corridor: number of corridor steps between cue and junction, at least 1.
      stream: which stream of the vector this is.
    """

    def __init__(self, corridor=40, stream=0):
        super().__init__(stream)
        self._corridor = whole_number("corridor", corridor, high=LONGEST)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (_WIDTH,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(_ACTIONS)

    def _begin(self, words):
        self._cue = words[0] >> _DISTRACTORS & 1
        self._position = 0
        return self._observe(words[0])

    def _advance(self, action, words):
        self._position += 1
        terminated = self._position == self._corridor + 2
        reward = (1.0 if action == self._cue else -1.0) if terminated else 0.0
        return self._observe(words[0]), reward, terminated

    def _observe(self, word):
        observation = np.zeros(_WIDTH, np.float32)
        observation[self._cue if self._position == 0 else 2 if self._position <= self._corridor else 3] = 1.0
        observation[4:] = [word >> bit & 1 for bit in range(_DISTRACTORS)]
        return observation
