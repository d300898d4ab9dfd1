import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import SyncVectorEnv
from tf_agents.drivers import dynamic_step_driver
from tf_agents.environments import tf_py_environment, utils
from tf_agents.policies import random_tf_policy

from keras_rtrl import environments
from keras_rtrl.environments.gymnasium_vector import GymnasiumVector
from keras_rtrl.environments.vector import stream_seeds

FIRST, MID, LAST = 0, 1, 2


def test_streams_are_gymnasium_environments_of_their_own():
    """Every stream, over several episodes, equals a plain environment with the stream's seed; ends fall apart."""
    streams, steps = 4, 150
    env = environments.make("CartPole-v1", num_envs=streams, seed=5)
    actions = np.random.default_rng(0).integers(0, 2, (steps, streams))
    time_steps = [env.reset()] + [env.step(action) for action in actions]
    games = env.finished_games()
    assert env.finished_games() == []
    ends = []
    for stream, seed in enumerate(stream_seeds(5, streams).tolist()):
        plain, finished, done = gymnasium.make("CartPole-v1"), [], True
        length = 0
        for t, time_step in enumerate(time_steps):
            if done:
                observation, _ = plain.reset(seed=seed if t == 0 else None)
                reward, terminated, done, expected, length = 0.0, False, False, FIRST, 0
            else:
                observation, reward, terminated, _, _ = plain.step(actions[t - 1, stream])
                done, expected, length = terminated, LAST if terminated else MID, length + 1
                if done:
                    finished.append((float(length), length, stream))
            np.testing.assert_array_equal(time_step.observation[stream], observation)
            assert time_step.step_type[stream] == expected
            assert time_step.reward[stream] == reward
            assert time_step.discount[stream] == (0.0 if terminated else 1.0)
        assert len(finished) >= 3
        assert finished == [game for game in games if game[2] == stream]
        ends.append([length for _, length, _ in finished])
    assert len(set(map(tuple, ends))) == streams


def test_truncation_is_not_termination():
    env = environments.make("CartPole-v1", num_envs=2, seed=0, max_episode_steps=5)
    env.reset()
    time_steps = [env.step(np.array([t % 2, t % 2])) for t in range(6)]
    assert [t.step_type.tolist() for t in time_steps[4:]] == [[LAST] * 2, [FIRST] * 2]
    assert time_steps[4].discount.tolist() == [1.0, 1.0]

    env = environments.make("CartPole-v1", num_envs=1, seed=0)
    time_step = env.reset()
    while not time_step.is_last():
        time_step = env.step(np.array([0]))
    assert time_step.discount.tolist() == [0.0]


def test_seeds():
    def first(seed):
        return environments.make("CartPole-v1", num_envs=4, seed=seed).reset().observation

    np.testing.assert_array_equal(first(0), first(0))
    assert len(np.unique(np.concatenate([first(0), first(1), first(2)]), axis=0)) == 12
    assert (first(None) != first(None)).all()


def test_box_actions_and_float64():
    env = environments.make("Pendulum-v1", num_envs=2, seed=0)
    spec = env.action_spec()
    assert (spec.shape, spec.dtype, spec.minimum.tolist(), spec.maximum.tolist()) == ((1,), np.float32, [-2], [2])
    assert env.reset().observation.dtype == np.float32
    assert env.step(np.array([[1.0], [-1.0]], np.float32)).reward.shape == (2,)
    assert env.frames_per_step == 1


class Shifted(gymnasium.Env):
    """Discrete spaces that do not start at 0."""

    observation_space = gymnasium.spaces.Discrete(5, start=-2)
    action_space = gymnasium.spaces.Discrete(3, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.int64(-2), {}

    def step(self, action):
        return np.int64(action - 1), float(action), False, False, {}


def test_discrete_spaces_start_at_zero():
    env = GymnasiumVector(SyncVectorEnv([Shifted, Shifted]))
    assert env.reset().observation.tolist() == [0, 0]
    time_step = env.step(np.array([0, 2]))
    assert time_step.reward.tolist() == [1.0, 3.0]
    assert time_step.observation.tolist() == [2, 4]
    assert (env.observation_spec().minimum, env.observation_spec().maximum) == (0, 4)


class Unsupported(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Discrete(2)})
    action_space = gymnasium.spaces.Discrete(2)


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match="observation space must be Box or Discrete"):
        GymnasiumVector(SyncVectorEnv([Unsupported]))


def test_validates():
    utils.validate_py_environment(environments.make("CartPole-v1", num_envs=3, seed=0), episodes=6)


def test_stock_driver():
    env = tf_py_environment.TFPyEnvironment(environments.make("CartPole-v1", num_envs=3, seed=0))
    policy = random_tf_policy.RandomTFPolicy(env.time_step_spec(), env.action_spec())
    seen = []
    driver = dynamic_step_driver.DynamicStepDriver(env, policy, observers=[seen.append], num_steps=30)
    driver.run(maximum_iterations=10)
    assert len(seen) == 10
    assert seen[0].observation.shape == (3, 4)
    assert seen[0].is_first().numpy().all()
    assert isinstance(seen[0].reward, tf.Tensor)


def test_bad_options_and_actions():
    with pytest.raises(ValueError, match="wind"):
        environments.make("CartPole-v1", wind=3)
    env = environments.make("CartPole-v1", num_envs=2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=r"action must lie in 0\.\.1"):
        env.step(np.array([0, 2]))
