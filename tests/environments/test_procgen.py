"""Real games, held against one-stream simulators driven by hand with the same seeds and actions."""

import ctypes.util
import importlib.util
import os
import signal
import sys

import numpy as np
import pytest
from tf_agents.environments import utils

from keras_rtrl import environments
from keras_rtrl.environments import procgen
from keras_rtrl.environments.vector import stream_seeds

if importlib.util.find_spec("procgen") is None and importlib.util.find_spec("envpool") is None:
    pytest.skip("neither procgen2 nor EnvPool is installed", allow_module_level=True)
FIRST, MID, LAST = 0, 1, 2
HAS_QT = sys.version_info >= (3, 12) or ctypes.util.find_library("Qt5Gui") is not None
needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None or not HAS_QT,
    reason="EnvPool is not installed, or for Python 3.11 and without the Qt 5 that its ProcGen needs there",
)
NO_OP = 4


def played(seed=3, streams=3, steps=60, game="starpilot", **options):
    """The time steps of random play: a list."""
    env = environments.make(f"procgen:{game}", num_envs=streams, seed=seed, **options)
    actions = np.random.default_rng(0).integers(0, 15, (steps, streams))
    return [env.reset()] + [env.step(action) for action in actions]


@pytest.mark.parametrize("distribution", ["easy", "hard"])
def test_no_frame_is_lost_or_mixed(distribution):
    """Over several ends a stream shows what a simulator of its own does, which plays without LAST and FIRST steps."""
    procgen2 = pytest.importorskip("procgen", reason="its wheels are for Python 3.11")
    streams, steps = 4, 150
    env = environments.make("procgen:starpilot", num_envs=streams, seed=3, distribution=distribution)
    spec, actions = env.observation_spec(), env.action_spec()
    assert (spec.shape, spec.dtype, actions.minimum, actions.maximum) == ((64, 64, 3), np.uint8, 0, 14)
    alone = [
        procgen2.ProcgenGym3Env(
            1, "starpilot", rand_seed=seed, num_levels=500, start_level=0, distribution_mode=distribution
        )
        for seed in stream_seeds(3, streams).tolist()
    ]
    rng, games, ends = np.random.default_rng(0), [], []
    returns, lengths = np.zeros(streams), np.zeros(streams, int)
    time_step = env.reset()
    for _ in range(steps):
        before, action = time_step, rng.integers(0, 15, streams)
        kept = before.observation.copy()
        time_step = env.step(action)
        np.testing.assert_array_equal(before.observation, kept)
        for i, simulator in enumerate(alone):
            if before.step_type[i] == LAST:
                assert (time_step.step_type[i], time_step.reward[i], time_step.discount[i]) == (FIRST, 0, 1)
            else:
                simulator.act(action[i : i + 1])
            (reward,), observation, (ended,) = simulator.observe()
            observation = observation["rgb"][0]
            if before.step_type[i] == LAST:
                np.testing.assert_array_equal(time_step.observation[i], observation)
                continue
            returns[i] += reward
            lengths[i] += 1
            assert time_step.step_type[i] == (LAST if ended else MID)
            assert (time_step.reward[i], time_step.discount[i]) == (reward, 0.0 if ended else 1.0)
            np.testing.assert_array_equal(time_step.observation[i], before.observation[i] if ended else observation)
            if ended:
                games.append((returns[i], lengths[i], i))
                returns[i] = lengths[i] = 0
                ends.append(i)
    assert len(set(ends)) >= 3
    assert env.finished_games() == games
    assert env.finished_games() == []
    env.close()


@pytest.mark.parametrize(("game", "distribution", "limit"), [("maze", "easy", 500), ("jumper", "memory", 2000)])
def test_the_time_limit_truncates(game, distribution, limit):
    env = environments.make(f"procgen:{game}", num_envs=2, seed=0, distribution=distribution)
    env.reset()
    time_steps = [env.step(np.full(2, NO_OP)) for _ in range(limit + 1)]
    assert {t for t, time_step in enumerate(time_steps) if (time_step.step_type != MID).any()} == {limit - 1, limit}
    assert [time_step.step_type.tolist() for time_step in time_steps[-2:]] == [[LAST] * 2, [FIRST] * 2]
    assert time_steps[-2].discount.tolist() == [1.0, 1.0]
    assert env.finished_games() == [(0.0, limit, 0), (0.0, limit, 1)]


def test_fresh_instances_agree_and_streams_differ():
    for one, two in zip(played(), played(), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
    streams = np.concatenate([played(seed=seed, steps=0)[0].observation for seed in (3, 4)])
    assert len(np.unique(streams.reshape(6, -1), axis=0)) == 6


def test_worker_processes_play_the_same():
    for one, two in zip(played(), played(workers=2), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_killed_worker_costs_its_own_streams_an_episode():
    env = environments.make("procgen:chaser", num_envs=3, seed=0, workers=2)
    twin = environments.make("procgen:chaser", num_envs=3, seed=0)
    env.reset()
    twin.reset()
    for t in range(8):
        if t == 4:
            os.kill(env.worker_pids[0], signal.SIGKILL)
        time_step, undisturbed = (x.step(np.full(3, 7)) for x in (env, twin))
        np.testing.assert_array_equal(time_step.observation[2], undisturbed.observation[2])
        assert time_step.step_type.tolist() == [{4: LAST, 5: FIRST}.get(t, MID)] * 2 + [MID]
        assert time_step.discount.tolist() == [1.0] * 3
    assert env.finished_games() == []
    env.close()


def test_held_out_levels():
    """The levels of num_levels=0 begin at start_level; two ranges of one level each never show the same."""

    def seen(**options):
        return played(streams=4, steps=0, game="coinrun", **options)[0].observation

    assert len(np.unique(seen(num_levels=1).reshape(4, -1), axis=0)) == 1
    assert len(np.unique(seen(num_levels=0).reshape(4, -1), axis=0)) == 4
    last = 2**31 - 2  # of all levels, so that num_levels=0 leaves this one alone
    np.testing.assert_array_equal(seen(num_levels=0, start_level=last), seen(num_levels=1, start_level=last))
    assert (seen(num_levels=1) != seen(num_levels=1, start_level=500)).any()


def test_reset_in_mid_game_starts_anew():
    env = environments.make("procgen:maze", num_envs=2, seed=0)
    env.reset()
    for _ in range(10):
        env.step(np.full(2, NO_OP))
    assert env.reset().step_type.tolist() == [FIRST] * 2
    for _ in range(500):
        time_step = env.step(np.full(2, NO_OP))
    assert time_step.step_type.tolist() == [LAST] * 2
    assert [length for _, length, _ in env.finished_games()] == [500, 500]


def test_validates():
    utils.validate_py_environment(environments.make("procgen:starpilot", num_envs=2, seed=0), episodes=3)


@pytest.mark.parametrize("action", [np.array([0, 15]), np.array([-1, 0]), np.array([0]), np.array([0, np.nan])])
def test_bad_actions(action):
    env = environments.make("procgen:chaser", num_envs=2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="action must"):
        env.step(action)


@pytest.mark.parametrize(
    ("game", "option", "message"),
    [
        ("chasr", {}, "no environment is called 'procgen:chasr'; did you mean procgen:chaser"),
        (
            "chaser",
            {"levels": 3},
            "has no option 'levels'; its options are engine, distribution, num_levels, start_level",
        ),
        ("chaser", {"distribution": "memory"}, "distribution must be one of easy, hard, extreme for procgen:chaser"),
        ("chaser", {"distribution": 3}, "distribution must be one of easy, hard, extreme for procgen:chaser, got 3"),
        ("chaser", {"engine": "gymnasium"}, "engine must be one of"),
        ("chaser", {"num_levels": -1}, "num_levels must be a whole number of at least 0 and at most 2147483646"),
        ("chaser", {"num_levels": 1.5}, "num_levels must be"),
        ("chaser", {"num_levels": True}, "num_levels must be"),
        ("chaser", {"start_level": "0"}, "start_level must be"),
        ("chaser", {"start_level": 2**31}, "start_level must be"),
        ("chaser", {"start_level": 2**31 - 3, "num_levels": 3}, r"start_level \+ num_levels must be at most"),
        ("chaser", {"num_envs": 0}, "num_envs must be a whole number of at least 1, got 0"),
        ("chaser", {"seed": -1}, "seed must be a whole number of at least 0"),
        ("chaser", {"workers": 2}, "workers must be a whole number of at least 0 and at most 1, got 2"),
    ],
)
def test_bad_arguments(game, option, message):
    with pytest.raises(ValueError, match=message):
        environments.make(f"procgen:{game}", **option)


@needs_envpool
@pytest.mark.parametrize(
    ("game", "distribution"), [("chaser", "easy"), ("chaser", "extreme"), ("coinrun", "hard"), ("jumper", "memory")]
)
def test_envpool_plays_the_same_game(game, distribution):
    """One level, from one state. EnvPool draws edges a little differently, and shows the last frame of a game."""
    procgen2 = pytest.importorskip("procgen", reason="its wheels are for Python 3.11")
    levels = {"num_levels": 1, "start_level": 5}
    env = environments.make(f"procgen:{game}", 1, seed=3, engine="envpool", distribution=distribution, **levels)
    (seed,) = stream_seeds(3, 1).tolist()
    alone = procgen2.ProcgenGym3Env(1, game, rand_seed=seed, distribution_mode=distribution, **levels)
    time_step, rng = env.reset(), np.random.default_rng(0)
    for _ in range(2001):
        _, observation, _ = alone.observe()
        assert np.abs(time_step.observation - observation["rgb"].astype(np.float32)).mean() < 10
        action = rng.integers(0, 15, 1)
        time_step = env.step(action)
        alone.act(action.astype(np.int32))
        reward, _, ended = alone.observe()
        np.testing.assert_array_equal(time_step.reward, reward)
        assert (time_step.step_type[0] == LAST) == ended[0]
        if ended[0]:
            break
    assert ended[0]
    ((_, length, _),) = env.finished_games()
    limit = {"coinrun": 1000, "jumper": 2000}.get(game)
    assert time_step.discount == (length == limit)


@pytest.mark.skipif(importlib.util.find_spec("envpool") is None or HAS_QT, reason="EnvPool's ProcGen has its Qt")
def test_without_qt():
    with pytest.raises(ImportError, match=r"ChaserEasy-v0 needs envpool, .* cannot be imported: .*Qt 5"):
        environments.make("procgen:chaser", engine="envpool", distribution="easy")


@needs_envpool
@pytest.mark.parametrize("game", sorted(procgen._TIME_LIMITS))
def test_envpool_has_every_game(game):
    for distribution, games in procgen._DISTRIBUTIONS.items():
        if game in games:
            env = environments.make(f"procgen:{game}", 1, seed=0, engine="envpool", distribution=distribution)
            assert env.reset().observation.std() > 0
            env.close()


def test_training_goes_on_after_a_kill(train_disturbed):
    env = environments.make("procgen:chaser", num_envs=3, seed=0, workers=2)
    losses, step_types = train_disturbed(env, lambda: os.kill(env.worker_pids[1], signal.SIGKILL))
    assert np.isfinite(losses).all()
    assert step_types[:, 12:15].tolist() == [[MID] * 3] * 2 + [[MID, LAST, FIRST]]
    env.close()
