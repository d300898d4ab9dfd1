"""In-graph games of cards, held against popgym's own with the same shuffles and actions."""

import gymnasium
import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import environments
from keras_rtrl.environments.cards import GAMES

pytest.importorskip("popgym.envs")
FIRST, MID, LAST = 0, 1, 2
STREAMS = 3


def decks_of(env):
    """The shuffled decks [piles][B, cards], as they lie now."""
    return [part.numpy() for part in env.variables[1:] if part.shape.rank == 2 and part.dtype == tf.int32][: env._piles]


def laid(plain, decks):
    """popgym's environment at the start of an episode with these decks, one for each pile; its observation."""
    game, rng = plain.unwrapped, iter(decks)

    class Shuffles:
        """Lays the cards as they are told, in the place of a generator that shuffles them."""

        def shuffle(self, cards):
            cards[:] = next(rng)

    game.np_random = Shuffles()
    return plain.reset()[0]


def skilled(game, plain, rng):
    """An action that ends the game early, or scores: of Concentration a pair that matches, by looking at the cards."""
    game = plain.unwrapped
    up, first = game.deck["face_up_idx"], game.deck["in_play_idx"]
    kinds = game.deck_idx_type[game.deck.idx]
    if not first:
        return int(rng.choice([i for i in range(len(kinds)) if i not in up]))
    return int(
        rng.choice([i for i in range(len(kinds)) if i not in up and i != first[0] and kinds[i] == kinds[first[0]]])
    )


# Easy and Hard differ by sizes and rules, Medium from them by sizes alone.
MODES = [
    *((game, "eager") for game in GAMES if game.endswith("Easy")),
    *((game, "xla") for game in GAMES if not game.endswith("Medium")),
    *(pytest.param(game, "xla", marks=pytest.mark.full) for game in GAMES if game.endswith("Medium")),
]


@pytest.mark.parametrize(("game", "mode"), MODES)
def test_equals_popgym(game, mode):
    """Two episodes and a bit, of random play; in Concentration the first stream sees the cards and wins early."""
    name = f"popgym-{game}-v0"
    env = environments.make(name, num_envs=STREAMS, seed=3)
    twin = environments.make(name, num_envs=1, seed=3, engine="gymnasium")
    assert env.observation_spec().shape == twin.observation_spec().shape
    assert env.action_spec().maximum == twin.action_spec().maximum
    plain = [gymnasium.make(name, disable_env_checker=True) for _ in range(STREAMS)]
    space = plain[0].observation_space
    step = tf.function(env.step, jit_compile=True) if mode == "xla" else env.step
    rng, ended, returns = np.random.default_rng(0), np.zeros(STREAMS, int), []
    time_step, expected = env.reset(), [None] * STREAMS
    done = [True] * STREAMS
    running = np.zeros(STREAMS)
    while ended.min() < 2:
        decks = decks_of(env)
        for i in range(STREAMS):
            if done[i]:
                observation = laid(plain[i], [deck[i] for deck in decks])
                expected[i] = (observation, 0.0, False, False, FIRST)
            observation, reward, terminated, truncated, kind = expected[i]
            np.testing.assert_array_equal(
                time_step.observation[i], gymnasium.spaces.flatten(space, observation).astype(np.float32)
            )
            assert time_step.reward[i].numpy() == np.float32(reward)
            assert time_step.step_type[i] == kind
            assert time_step.discount[i] == (0.0 if terminated else 1.0)
            running[i] += reward
            done[i] = kind == LAST
            if done[i]:
                returns.append(running[i])
                ended[i] += 1
                running[i] = 0.0
        actions = rng.integers(0, int(env.action_spec().maximum) + 1, STREAMS)
        for i in range(STREAMS):
            if done[i]:
                continue
            if i == 0 and game.startswith("Concentration"):
                actions[i] = skilled(game, plain[i], rng)
            observation, reward, terminated, truncated, _ = plain[i].step(int(actions[i]))
            expected[i] = (observation, reward, terminated, truncated, LAST if terminated or truncated else MID)
        time_step = step(tf.constant(actions))
    assert len(returns) >= 2 * STREAMS
    if game.startswith("Concentration"):
        assert max(returns) == pytest.approx(1.0)


def test_shuffles_are_fair_and_differ():
    """Each suit comes first, and each second after each, as often as in a shuffled deck."""
    env = environments.make("popgym-RepeatFirstEasy-v0", num_envs=4000, seed=1)
    env.reset()
    (deck,) = decks_of(env)
    assert (np.sort(deck, axis=1) == np.arange(52)).all()
    assert len(np.unique(deck, axis=0)) == 4000
    first, second = deck[:, -1], deck[:, -2]
    counts = np.bincount(first * 52 + second, minlength=52 * 52).reshape(52, 52)
    assert (np.diag(counts) == 0).all()
    expected = 4000 / 52
    assert abs(counts.sum(1) - expected).max() < 5 * np.sqrt(expected)
    before = deck
    for _ in range(52):
        env.step(tf.zeros([4000], tf.int64))
    assert (decks_of(env)[0] != before).any(axis=1).all()


def test_seeds_and_streams():
    def first(seed, streams):
        env = environments.make("popgym-RepeatPreviousEasy-v0", num_envs=streams, seed=seed)
        env.reset()
        return decks_of(env)[0]

    np.testing.assert_array_equal(first(0, 2), first(0, 2))
    assert (first(0, 2) != first(1, 2)).any(axis=1).all()


def test_engines():
    name = "popgym-RepeatFirstEasy-v0"
    assert environments.make(name, engine="graph").batched
    assert not hasattr(environments.make(name, engine="gymnasium"), "variables")
    with pytest.raises(ValueError, match=r"engine must be one of \('auto', 'graph', 'gymnasium'\), got 'popgym'"):
        environments.make(name, engine="popgym")
    with pytest.raises(ValueError, match="engine must be 'auto' or 'gymnasium' for popgym-BattleshipEasy-v0"):
        environments.make("popgym-BattleshipEasy-v0", engine="graph")
    with pytest.raises(ValueError, match="graph unless engine is 'gymnasium', got 2"):
        environments.make(name, num_envs=2, workers=2)
