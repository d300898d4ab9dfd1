"""Memory chain: one bit seen once, a wait of `length` steps, and a question that only the bit can answer.

Observation, float32 [2]: (bit, query). The first observation holds the bit as +1 or -1, the next `length` ones are
zero, the one after is (0, 1). There the action counts: 1 is right after +1, 0 after -1; reward 1 if right, else -1, and
the episode terminates with an observation of zeros. Before, actions have no effect and rewards are 0. Blind chance is
50 %, a mean return of 0.

The bit is bit 0 of the random word of the episode's first step.
"""

import gymnasium
import numpy as np
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl._checks import whole_number
from keras_rtrl.environments.in_graph import LONGEST, InGraphEnv, InGraphTask, bit
from keras_rtrl.environments.registry import unknown_name


def in_graph(name, engine):
    del name, engine
    return True


def make(name, num_envs, seed, *, length=32):
    """The in-graph memory chain."""
    if name != "MemoryChain-v0":
        raise unknown_name(name, ["MemoryChain-v0"])
    return MemoryChain(num_envs, seed=seed, length=length)


class MemoryChain(InGraphTask):
    """`num_envs` memory chains as a TFEnvironment whose step is pure graph operations: it runs under jit_compile.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
      length: number of steps of zeros between bit and query, at least 1.
    """

    def __init__(self, num_envs: int, *, seed: int | None = None, length: int = 32):
        self._length = whole_number("length", length, high=LONGEST)
        super().__init__(
            tensor_spec.BoundedTensorSpec((2,), tf.float32, -1.0, 1.0, name="observation"),
            tensor_spec.BoundedTensorSpec((), tf.int64, 0, 1, name="action"),
            num_envs,
            seed,
            state=(tf.zeros([num_envs], tf.int32), tf.zeros([num_envs], tf.int32)),
        )

    def _advance(self, restart, action, state, words):
        answer, position = state
        answer = tf.where(restart, bit(words(1)[:, 0], 0), answer)
        position = tf.where(restart, 0, position + 1)
        last = tf.equal(position, self._length + 2)
        shown = tf.where(restart, tf.where(tf.equal(answer, 1), 1.0, -1.0), 0.0)
        query = tf.cast(tf.equal(position, self._length + 1), tf.float32)
        reward = tf.where(last, tf.where(tf.equal(action, answer), 1.0, -1.0), 0.0)
        return (answer, position), tf.stack([shown, query], axis=1), reward, last, tf.zeros_like(last)


class MemoryChainEnv(InGraphEnv):
    """One memory chain as a gymnasium environment, equal to stream `stream` of `MemoryChain` under the same seed.

    Args:
      length: number of steps of zeros between bit and query, at least 1.
      stream: which stream of the vector this is.
    """

    def __init__(self, length=32, stream=0):
        super().__init__(stream)
        self._length = whole_number("length", length, high=LONGEST)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def _begin(self, words):
        self._answer = words[0] & 1
        self._position = 0
        return np.array([1.0 if self._answer else -1.0, 0.0], np.float32)

    def _advance(self, action, words):
        self._position += 1
        query = self._position == self._length + 1
        terminated = self._position == self._length + 2
        reward = (1.0 if action == self._answer else -1.0) if terminated else 0.0
        return np.array([0.0, query], np.float32), reward, terminated
