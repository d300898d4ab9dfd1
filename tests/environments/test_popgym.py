import sys

import gymnasium
import numpy as np
import pytest
from tf_agents.environments import utils

from keras_rtrl import environments
from keras_rtrl.environments.vector import stream_seeds

popgym_envs = pytest.importorskip("popgym.envs")
FIRST, MID, LAST = 0, 1, 2
NAMES = [registration["id"] for registration in popgym_envs.ALL.values()]


def random_actions(spec, steps, streams):
    rng, shape = np.random.default_rng(0), (steps, streams, *spec.shape)
    if spec.dtype == np.int64:
        return rng.integers(0, np.asarray(spec.maximum) + 1, shape)
    return rng.uniform(-2.5, 2.5, shape).astype(np.float32)  # some out of bounds


def test_there_are_42():
    assert len(set(NAMES)) == 42


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_popgyms_own(name):
    """Every stream equals a plain environment with the stream's seed; ends are as popgym reports them."""
    env = environments.make(name, num_envs=2, seed=3, engine="gymnasium")
    actions = random_actions(env.action_spec(), 120, 2)
    time_steps = [env.reset()] + [env.step(action) for action in actions]
    space = gymnasium.make(name, disable_env_checker=True).observation_space
    assert env.observation_spec().shape == gymnasium.spaces.flatten_space(space).shape
    assert env.observation_spec().dtype == np.float32
    for stream, seed in enumerate(stream_seeds(3, 2).tolist()):
        plain, done = gymnasium.make(name, disable_env_checker=True), True
        for t, time_step in enumerate(time_steps):
            if done:
                observation, _ = plain.reset(seed=seed if t == 0 else None)
                reward, terminated, done, expected = 0.0, False, False, FIRST
            else:
                action = actions[t - 1, stream]
                if isinstance(plain.action_space, gymnasium.spaces.Box):
                    action = np.clip(action, -2.0, 2.0)
                observation, reward, terminated, truncated, _ = plain.step(action)
                done = terminated or truncated
                expected = LAST if done else MID
            assert time_step.observation.dtype == np.float32
            np.testing.assert_array_equal(time_step.observation[stream], gymnasium.spaces.flatten(space, observation))
            assert time_step.step_type[stream] == expected
            assert time_step.reward[stream] == np.float32(reward)
            assert time_step.discount[stream] == (0.0 if terminated else 1.0)


def test_choices_are_one_hot():
    env = environments.make("popgym-AutoencodeEasy-v0", num_envs=3, seed=0, engine="gymnasium")
    observation = env.reset().observation
    assert observation.shape == (3, 6)
    assert (observation[:, :2].sum(1) == 1).all()
    assert (observation[:, 2:].sum(1) == 1).all()


def test_streams_and_seeds():
    def played(seed):
        env = environments.make("popgym-RepeatPreviousEasy-v0", num_envs=4, seed=seed, engine="gymnasium")
        return np.stack([env.reset().observation] + [env.step(np.zeros(4, int)).observation for _ in range(40)], axis=1)

    np.testing.assert_array_equal(played(0), played(0))
    streams = np.concatenate([played(0), played(1)]).reshape(8, -1)
    assert len(np.unique(streams, axis=0)) == 8


@pytest.mark.parametrize(("name", "num_envs"), [("RepeatFirst", 2), ("PositionOnlyPendulum", 2), ("Battleship", 1)])
def test_validates(name, num_envs):
    """One Battleship: TF-Agents' random policy cannot draw a batch of vectors of choices."""
    utils.validate_py_environment(
        environments.make(f"popgym-{name}Easy-v0", num_envs=num_envs, seed=0, engine="gymnasium"), episodes=2
    )


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean popgym-RepeatFirstEasy-v0"):
        environments.make("popgym-RepeatFirstEasy-v1")
    with pytest.raises(ValueError, match="has no option 'num_decks'; its options are engine"):
        environments.make("popgym-RepeatFirstEasy-v0", num_decks=2)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym.envs", None)
    with pytest.raises(ImportError, match=r'needs popgym: pip install "keras_rtrl\[popgym\]"'):
        environments.make("popgym-RepeatFirstEasy-v0", engine="gymnasium")
