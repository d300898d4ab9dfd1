import sys

import gymnasium
import minigrid  # noqa: F401  registers the tasks
import numpy as np
import pytest
from minigrid.wrappers import OneHotPartialObsWrapper
from tf_agents.environments import utils

from keras_rtrl import environments
from keras_rtrl.environments.vector import stream_seeds

FIRST, MID, LAST = 0, 1, 2
MEMORY = "MiniGrid-MemoryS7-v0"


def test_a_package_that_a_task_lacks_is_named(monkeypatch):
    def without(*_, **__):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(gymnasium, "make", without)
    with pytest.raises(ImportError, match=f"{MEMORY} needs a package that is not installed: pygame is not"):
        environments.make(MEMORY, num_envs=1, seed=0)


def test_streams_are_minigrids_own():
    """Each stream equals a plain environment with its seed, direction and view one-hot; through several episodes."""
    streams, steps = 3, 300
    env = environments.make(MEMORY, num_envs=streams, seed=5, engine="gymnasium")
    spec = env.observation_spec()
    assert (spec.shape, spec.dtype) == ((4 + 7 * 7 * 20,), np.float32)
    actions = np.random.default_rng(0).choice([0, 1, 2, 2], (steps, streams))  # left, right, forward
    time_steps = [env.reset()] + [env.step(action) for action in actions]
    discounts = set()
    for stream, seed in enumerate(stream_seeds(5, streams).tolist()):
        plain, done = OneHotPartialObsWrapper(gymnasium.make(MEMORY)), True
        for t, time_step in enumerate(time_steps):
            if done:
                observation, _ = plain.reset(seed=seed if t == 0 else None)
                reward, terminated, done, expected = 0.0, False, False, FIRST
            else:
                observation, reward, terminated, truncated, _ = plain.step(actions[t - 1, stream])
                done = terminated or truncated
                expected = LAST if done else MID
                if done:
                    discounts.add(0.0 if terminated else 1.0)
            seen = time_step.observation[stream]
            assert np.flatnonzero(seen[:4]).tolist() == [observation["direction"]]
            np.testing.assert_array_equal(seen[4:], observation["image"].ravel())
            assert time_step.step_type[stream] == expected
            assert time_step.reward[stream] == np.float32(reward)
            assert time_step.discount[stream] == (0.0 if terminated else 1.0)
    assert 0.0 in discounts
    assert set(np.unique(time_steps[0].observation)) == {0.0, 1.0}


def test_fresh_instances_agree_and_streams_differ():
    def seen(seed):
        env = environments.make("MiniGrid-FourRooms-v0", num_envs=4, seed=seed)
        actions = [0, 0, 0, 0, *[2] * 9] * 2  # around, then forward
        return np.stack([env.reset().observation] + [env.step(np.full(4, a)).observation for a in actions], axis=1)

    np.testing.assert_array_equal(seen(0), seen(0))
    assert len(np.unique(np.concatenate([seen(0), seen(1)]).reshape(8, -1), axis=0)) == 8


def test_validates():
    utils.validate_py_environment(environments.make(MEMORY, num_envs=2, seed=0, engine="gymnasium"), episodes=3)


@pytest.mark.parametrize("action", [np.array([0, 7]), np.array([-1, 0]), np.array([0])])
def test_bad_actions(action):
    env = environments.make(MEMORY, num_envs=2, seed=0, engine="gymnasium")
    env.reset()
    with pytest.raises(ValueError, match="action must"):
        env.step(action)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("MiniGrid-MemoryS8-v0", {}, "no environment is called 'MiniGrid-MemoryS8-v0'; did you mean MiniGrid-Memory"),
        ("MiniGrid-Fetch-5x5-N2-v0", {}, "must have one mission for all its episodes, .* got one that varies"),
        (MEMORY, {"size": 9}, "has no option 'size'; its options are engine, moves_only"),
        (MEMORY, {"moves_only": 1}, "moves_only must be True or False, got 1"),
        (MEMORY, {"engine": "envpool"}, "engine must be one of"),
        ("MiniGrid-FourRooms-v0", {"engine": "graph"}, "engine must be 'auto' or 'gymnasium' for MiniGrid-FourRooms"),
        (MEMORY, {"num_envs": True}, "num_envs must be a whole number of at least 1, got True"),
        (MEMORY, {"seed": "0"}, "seed must be a whole number of at least 0"),
        (
            MEMORY,
            {"num_envs": 2, "workers": 2},
            "workers must be None or 0 for MiniGrid-MemoryS7-v0",
        ),
        (
            MEMORY,
            {"workers": 2, "engine": "gymnasium"},
            "at least 0 and at most 1, got 2",
        ),
    ],
)
def test_bad_arguments(name, option, message):
    with pytest.raises(ValueError, match=message):
        environments.make(name, **option)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(ImportError, match=r'needs minigrid: pip install "keras_rtrl\[minigrid\]"'):
        environments.make(MEMORY)
