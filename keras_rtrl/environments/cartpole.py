"""CartPole without velocities: the cart's position and the pole's angle alone, inside TensorFlow's graph.

"CartPole-P-v1" is gymnasium's CartPole-v1 with that mask. POPGym's PositionOnlyCartPole (Morad et al., arXiv
2303.01859) has other rewards and time limits. The physics is gymnasium's, in float64; only the numbers that an episode
starts from are drawn otherwise.
"""

import math

import gymnasium
import tensorflow as tf
from gymnasium.envs.registration import WrapperSpec
from tf_agents.specs import tensor_spec

from keras_rtrl.environments import gymnasium_vector
from keras_rtrl.environments.in_graph import InGraphTask, engine_of
from keras_rtrl.environments.registry import unknown_name

_GRAVITY, _CART, _POLE, _HALF_LENGTH, _FORCE, _SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_TOTAL, _MOMENT = _CART + _POLE, _POLE * _HALF_LENGTH
_MOST_X, _MOST_ANGLE = 2.4, 12 * 2 * math.pi / 360
_START = 0.05
_NAME = "CartPole-P-v1"
_LIMIT = 500


def in_graph(name, engine):
    del name
    return engine_of(engine) != "gymnasium"


def make(name, num_envs, seed, *, engine="auto"):
    """CartPole-P-v1, in the graph unless `engine` is "gymnasium"."""
    if name != _NAME:
        raise unknown_name(name, [_NAME])
    if in_graph(name, engine):
        return CartPole(num_envs, seed, _LIMIT)
    return gymnasium_vector.vector(lambda: gymnasium.make(name, disable_env_checker=True), num_envs, seed)


def register():
    """Registers CartPole-P-v1 with gymnasium."""
    if _NAME not in gymnasium.registry:
        gymnasium.register(
            _NAME,
            entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv",
            max_episode_steps=_LIMIT,
            additional_wrappers=(WrapperSpec("KeepPositions", f"{__name__}:KeepPositions", {}),),
        )


class KeepPositions(gymnasium.ObservationWrapper, gymnasium.utils.RecordConstructorArgs):
    """CartPole's observations without the velocities."""

    def __init__(self, env):
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        self.observation_space = gymnasium.spaces.Box(space.low[::2], space.high[::2])

    def observation(self, observation):
        return observation[::2]


class CartPole(InGraphTask):
    """`num_envs` cart-poles as a TFEnvironment that runs under jit_compile.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
      limit: steps after which an episode is truncated.
      reward: of every step, the one at which the pole falls or the cart leaves the track included.
    """

    def __init__(self, num_envs, seed, limit, reward=1.0):
        self._limit, self._reward = limit, reward
        high = [2 * _MOST_X, 2 * _MOST_ANGLE]
        super().__init__(
            tensor_spec.BoundedTensorSpec((2,), tf.float32, [-bound for bound in high], high, name="observation"),
            tensor_spec.BoundedTensorSpec((), tf.int64, 0, 1, name="action"),
            num_envs,
            seed,
            state=(tf.zeros([num_envs, 4], tf.float64), tf.zeros([num_envs], tf.int32)),
        )

    def _advance(self, restart, action, state, words):
        body, time = state
        start = (tf.cast(words(4), tf.float64) + 0.5) * (_START / 2**31)  # words are signed
        body = tf.where(restart[:, None], start, _moved(body, action))
        time = tf.where(restart, 0, time + 1)
        x, _, angle, _ = tf.unstack(body, axis=1)
        playing = ~restart
        fallen = playing & ((tf.abs(x) > _MOST_X) | (tf.abs(angle) > _MOST_ANGLE))
        reward = tf.where(playing, tf.constant(self._reward, tf.float32), 0.0)
        observation = tf.cast(tf.stack([x, angle], axis=1), tf.float32)
        return (body, time), observation, reward, fallen, playing & (time >= self._limit)


def _moved(body, action):
    """Position, velocity, angle and angular velocity [B, 4] one step later, by Euler's method."""
    x, velocity, angle, angular = tf.unstack(body, axis=1)
    force = tf.where(tf.equal(action, 1), tf.constant(_FORCE, body.dtype), -_FORCE)
    cos, sin = tf.cos(angle), tf.sin(angle)
    push = (force + _MOMENT * tf.square(angular) * sin) / _TOTAL
    turn = (_GRAVITY * sin - cos * push) / (_HALF_LENGTH * (4.0 / 3.0 - _POLE * tf.square(cos) / _TOTAL))
    acceleration = push - _MOMENT * turn * cos / _TOTAL
    return tf.stack(
        [
            x + _SECONDS * velocity,
            velocity + _SECONDS * acceleration,
            angle + _SECONDS * angular,
            angular + _SECONDS * turn,
        ],
        axis=1,
    )
