"""Real games, held against ale-py's vector environment driven by hand with the same seeds and actions."""

import sys

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from tf_agents.environments import utils

from keras_rtrl import environments
from keras_rtrl.environments import atari, registry
from keras_rtrl.environments.vector import stream_seeds

FIRST, MID, LAST = 0, 1, 2
NOOP, FIRE, RIGHT = 0, 1, 2  # places in Breakout's and Pong's minimal action sets


def make_raw(rom, seeds, **options):
    """The simulator as ale-py gives it, with its own report of lost lives."""
    raw = AtariVectorEnv(rom, len(seeds), reward_clipping=False, life_loss_info=True, **options)
    frames, info = raw.reset(seed=seeds)
    return raw, np.moveaxis(frames, 1, -1), info


def test_specs():
    env = environments.make("ALE/Breakout-v5", num_envs=3, seed=0)
    assert env.batched
    assert env.batch_size == 3
    assert env.observation_spec().shape == (84, 84, 4)
    assert env.observation_spec().dtype == np.uint8
    assert (env.action_spec().minimum, env.action_spec().maximum) == (0, 3)
    assert env.frames_per_step == 4
    time_step = env.reset()
    assert time_step.observation.shape == (3, 84, 84, 4)
    assert time_step.step_type.tolist() == [FIRST] * 3
    newest, oldest = time_step.observation[..., 3], time_step.observation[..., 0]
    assert newest.any()
    assert not oldest.any()


@pytest.mark.parametrize(
    ("game", "rom", "num_games", "ends", "training"),
    [
        ("Breakout", "breakout", 2, 5, True),
        ("Breakout", "breakout", 2, 5, False),
        pytest.param("Pong", "pong", 1, 1, True, marks=pytest.mark.full),
        pytest.param("Pong", "pong", 1, 1, False, marks=pytest.mark.full),
        ("Frogger", "frogger", 1, 4, True),
        ("Frogger", "frogger", 1, 4, False),
    ],
)
def test_whole_games_step_for_step(game, rom, num_games, ends, training):
    """Whole games, in which a lost life or the end is seen `ends` times: the same frames, LAST and FIRST in place.

    Pong has no lives. Frogger counts none left some steps before its game is over, which is no end.
    """
    streams = 2
    env = environments.make(f"ALE/{game}-v5", num_envs=streams, seed=3, training=training)
    raw, frames, info = make_raw(rom, stream_seeds(3, streams))
    time_step = env.reset()
    np.testing.assert_array_equal(time_step.observation, frames)

    rng = np.random.default_rng(0)
    reported = np.zeros(streams, bool)  # a lost life or a game's end, in the last step
    returns, lengths, finished, lives_lost = np.zeros(streams), np.zeros(streams, int), [], np.zeros(streams, int)
    previous_type, frame_number = time_step.step_type, info["episode_frame_number"]
    games_seen = []
    for _ in range(3000):
        action = rng.integers(0, 4, streams)
        time_step = env.step(action)
        frames, reward, terminated, truncated, info = raw.step(np.where(reported, FIRE, action))
        np.testing.assert_array_equal(time_step.observation, np.moveaxis(frames, 1, -1))
        assert not truncated.any()

        # The simulator's one sign of a game's end: the frame number falls in the step after it.
        restarted = info["episode_frame_number"] < frame_number
        for stream in np.flatnonzero(restarted):
            finished.append((returns[stream], lengths[stream], stream))
            assert not training or lives_lost[stream] == ends
            returns[stream] = lengths[stream] = lives_lost[stream] = 0
        assert (restarted <= reported).all()
        returns += reward
        lengths += ~restarted

        if training:
            expected = np.where(reported, FIRST, np.where(terminated, LAST, MID))
            expected_reward = np.where(reported, 0, reward)
            expected_discount = np.where(terminated & ~reported, 0, 1)
            lives_lost += terminated
        else:
            expected = np.where(restarted, FIRST, np.where(time_step.step_type == LAST, LAST, MID))
            expected_reward = reward
            expected_discount = np.where(time_step.step_type == LAST, 0, 1)
            assert ((previous_type == LAST) == restarted).all()
        np.testing.assert_array_equal(time_step.step_type, expected)
        np.testing.assert_array_equal(time_step.reward, expected_reward)
        np.testing.assert_array_equal(time_step.discount, expected_discount)
        reported, previous_type, frame_number = terminated, time_step.step_type, info["episode_frame_number"]
        games_seen += env.finished_games()
        if len(finished) >= num_games * streams:
            break

    assert len(finished) >= num_games * streams
    assert games_seen[: len(finished)] == [(float(r), int(n), int(s)) for r, n, s in finished]
    if game == "Breakout":
        assert max(r for r, _, _ in games_seen) > 0
    elif game == "Pong":
        assert all(r <= -10 for r, _, _ in games_seen)


def test_returns_are_not_clipped():
    env = environments.make("ALE/Seaquest-v5", num_envs=4, seed=0)
    rng, rewards, games = np.random.default_rng(0), set(), []
    env.reset()
    while not games:
        rewards.update(env.step(rng.integers(0, 18, 4)).reward.tolist())
        games = env.finished_games()
    assert 20.0 in rewards
    assert all(r % 20 == 0 and n > 50 for r, n, _ in games)


@pytest.mark.parametrize("training", [True, False])
def test_an_agent_that_never_fires_does_not_stall(training):
    env = environments.make("ALE/Breakout-v5", num_envs=2, seed=0, training=training)
    env.reset()
    ends = 0
    for _ in range(300):
        ends += (env.step(np.full(2, NOOP)).step_type == LAST).sum()
    games = env.finished_games()
    assert len(games) >= 2
    assert ends >= 5 * len(games) if training else ends == len(games)


def test_truncation_keeps_the_discount():
    env = environments.make("ALE/Pong-v5", num_envs=2, seed=0, max_frames=200)
    env.reset()
    for t in range(1, 104):
        time_step = env.step(np.full(2, NOOP))
        expected = {50: LAST, 51: FIRST, 101: LAST, 102: FIRST}.get(t, MID)
        assert time_step.step_type.tolist() == [expected] * 2, t
        assert time_step.discount.tolist() == [1.0] * 2
    assert [(n, s) for _, n, s in env.finished_games()] == [(50, 0), (50, 1), (50, 0), (50, 1)]


def test_a_game_cut_in_the_step_that_fires_ends_one_step_later():
    """The step after a lost life is FIRST whatever happens in it; an end in it must not be lost."""

    def play(actions, **options):
        env = environments.make("ALE/Breakout-v5", num_envs=1, seed=0, **options)
        env.reset()
        return [env.step(np.array([action])) for action in actions], env.finished_games()

    steps, _ = play([NOOP] * 60)
    lost = next(t for t, time_step in enumerate(steps) if time_step.step_type == LAST)
    cut, games = play([NOOP] * (lost + 5), max_frames=4 * (lost + 2))
    other, _ = play([NOOP] * (lost + 3) + [RIGHT] * 2, max_frames=4 * (lost + 2))
    np.testing.assert_array_equal(cut[lost + 3].observation, other[lost + 3].observation)  # FIRST ignores the action
    assert (cut[lost + 4].observation != other[lost + 4].observation).any()
    assert [int(t.step_type[0]) for t in cut[lost : lost + 5]] == [LAST, FIRST, LAST, FIRST, MID]
    assert [float(t.discount[0]) for t in cut[lost : lost + 5]] == [0, 1, 1, 1, 1]
    np.testing.assert_array_equal(cut[lost + 2].observation, cut[lost + 1].observation)
    assert games == [(0.0, lost + 2, 0)]


def observations(seed, streams=4, steps=12):
    env = environments.make("ALE/Breakout-v5", num_envs=streams, seed=seed)
    played = [env.reset().observation] + [env.step(np.full(streams, 2)).observation for _ in range(steps)]
    return np.stack(played, axis=1)


def test_seeds():
    zero, one = observations(0), observations(1)
    np.testing.assert_array_equal(zero, observations(0))
    assert not all((zero[0] == zero[i]).all() for i in range(1, 4))
    assert (zero[1:] != one[:-1]).any(axis=(1, 2, 3, 4)).any()
    assert (zero != one).any()


def test_seeds_of_streams_are_their_own():
    neighbours = [stream_seeds(seed, 16).tolist() for seed in range(8)]
    assert len({s for seeds in neighbours for s in seeds}) == 8 * 16


def test_reset_in_mid_game_starts_anew():
    env = environments.make("ALE/Breakout-v5", num_envs=2, seed=0, max_frames=80)
    env.reset()
    for _ in range(10):
        env.step(np.full(2, FIRE))
    assert env.reset().step_type.tolist() == [FIRST] * 2
    for _ in range(20):
        env.step(np.full(2, FIRE))
    assert [n for _, n, _ in env.finished_games()] == [20, 20]


def test_validates():
    utils.validate_py_environment(environments.make("ALE/Breakout-v5", num_envs=2, seed=0), episodes=4)


@pytest.mark.parametrize("action", [np.array([0, 4]), np.array([-1, 0]), np.array([0])])
def test_bad_actions(action):
    env = environments.make("ALE/Breakout-v5", num_envs=2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="action must"):
        env.step(action)


def test_a_single_image_is_the_newest_of_a_stack():
    one, four = (environments.make("ALE/Breakout-v5", num_envs=2, seed=0, stack_num=number) for number in (1, 4))
    assert one.observation_spec().shape == (84, 84, 1)
    actions = np.random.default_rng(0).integers(0, 4, (50, 2))
    for step in (lambda env: env.reset(), *(lambda env, a=a: env.step(a) for a in actions)):
        np.testing.assert_array_equal(step(one).observation[..., 0], step(four).observation[..., -1])


def test_unknown_game():
    with pytest.raises(ValueError, match="no environment is called 'ALE/Brekout-v5'; did you mean ALE/Breakout-v5"):
        environments.make("ALE/Brekout-v5")


@pytest.mark.parametrize(
    "option", [{"frame_skip": 2}, {"training": "yes"}, {"max_frames": 0}, {"sticky_actions": 0.25}, {"stack_num": 0}]
)
def test_bad_options(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        environments.make("ALE/Breakout-v5", **option)


def test_games_begin_with_no_ops_in_evaluation_too():
    """Up to 30 of them, in each stream as many as its seed says."""
    env = environments.make("ALE/Pong-v5", num_envs=6, seed=0, training=False)
    _, frames, info = make_raw("pong", stream_seeds(0, 6), noop_max=30)
    np.testing.assert_array_equal(env.reset().observation, frames)
    numbers = info["episode_frame_number"]
    assert len(set(numbers.tolist())) > 3
    assert 10 < numbers.max() - numbers.min() <= 30


@pytest.mark.parametrize("sticky", [True, False])
def test_sticky_actions(sticky):
    """Frames are those of the simulator that repeats actions with probability 0.25, or with none."""
    env = environments.make("ALE/Pong-v5", num_envs=2, seed=0, sticky_actions=sticky)
    raw, _, _ = make_raw("pong", stream_seeds(0, 2), repeat_action_probability=0.25 if sticky else 0.0)
    other, _, _ = make_raw("pong", stream_seeds(0, 2), repeat_action_probability=0.0 if sticky else 0.25)
    env.reset()
    rng, differ = np.random.default_rng(0), False
    for _ in range(100):
        action = rng.integers(0, 6, 2)
        observation = env.step(action).observation
        np.testing.assert_array_equal(observation, np.moveaxis(raw.step(action)[0], 1, -1))
        differ |= (observation != np.moveaxis(other.step(action)[0], 1, -1)).any()
    assert differ


def test_the_57_games_have_scores():
    assert len(atari.ATARI_57) == len(set(atari.ATARI_57)) == 57
    for name in atari.ATARI_57:
        with pytest.raises(ValueError, match="max_frames"):  # the name is one of ale-py's: its options are looked at
            environments.make(name, max_frames=0)
        random, human = atari.SCORES[name]
        assert registry.normalized_score(name, random) == 0.0
        assert registry.normalized_score(name, human) == 1.0
        assert human > random
    assert registry.normalized_score("ALE/Breakout-v5", 1.7 + 2 * 28.8) == pytest.approx(2.0)
    assert registry.normalized_score("ALE/Pong-v5", None) is None
    assert registry.normalized_score("ALE/Tetris-v5", 1.0) is None
    assert registry.normalized_score("CartPole-v1", 1.0) is None


def test_missing_ale_py(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match=r"keras_rtrl\[atari\]"):
        environments.make("ALE/Breakout-v5")
