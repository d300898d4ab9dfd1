import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.utils.env_checker import check_env

from keras_rtrl import environments

FIRST, MID, LAST = 0, 1, 2
STREAMS, LENGTH, STEPS = 3, 4, 100


def play(actions, seed=3, length=LENGTH, jit_compile=True):
    """reset, then one step for each row of actions [T, B]; all time steps stacked in time."""
    env = environments.make("MemoryChain-v0", num_envs=actions.shape[1], seed=seed, length=length)
    step = tf.function(env.step, jit_compile=jit_compile)
    time_steps = [env.reset()] + [step(tf.constant(action)) for action in actions]
    return tf.nest.map_structure(lambda *x: np.stack(x), *time_steps)


def random_actions(steps=STEPS, streams=STREAMS):
    return np.random.default_rng(0).integers(0, 2, (steps, streams))


@pytest.mark.parametrize("length", [1, LENGTH])
def test_the_rules(length):
    actions = random_actions()
    played = play(actions, length=length)
    period = length + 3  # bit, zeros, query, end
    rewards = []
    for start in range(0, STEPS + 1 - period, period):
        episode = played.observation[start : start + period]
        np.testing.assert_array_equal(abs(episode[0]), [[1, 0]] * STREAMS)
        np.testing.assert_array_equal(episode[1:-2], 0)
        np.testing.assert_array_equal(episode[-2], [[0, 1]] * STREAMS)
        np.testing.assert_array_equal(episode[-1], 0)
        np.testing.assert_array_equal(
            played.step_type[start : start + period].T, [[FIRST] + [MID] * (period - 2) + [LAST]] * STREAMS
        )
        right = (actions[start + period - 2] == 1) == (episode[0, :, 0] > 0)
        np.testing.assert_array_equal(played.reward[start + period - 1], np.where(right, 1.0, -1.0))
        np.testing.assert_array_equal(played.reward[start : start + period - 1], 0)
        np.testing.assert_array_equal(played.discount[start : start + period - 1], 1)
        np.testing.assert_array_equal(played.discount[start + period - 1], 0)
        rewards.append(played.reward[start + period - 1])
    assert set(np.unique(rewards)) == {-1.0, 1.0}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_equals_the_gymnasium_form_step_for_step(jit_compile):
    actions = random_actions()
    played = play(actions, jit_compile=jit_compile)
    for stream in range(STREAMS):
        env = gymnasium.make("MemoryChain-v0", length=LENGTH, **({"stream": stream} if stream else {}))
        done = True
        for t in range(STEPS + 1):
            if done:
                observation, _ = env.reset(seed=3 if t == 0 else None)
                reward, done, step_type = 0.0, False, FIRST
            else:
                observation, reward, done, truncated, _ = env.step(actions[t - 1, stream])
                step_type = LAST if done else MID
                assert not truncated
            np.testing.assert_array_equal(played.observation[t, stream], observation)
            assert played.reward[t, stream] == reward
            assert played.step_type[t, stream] == step_type


def test_bits_are_fair_and_streams_and_seeds_of_their_own():
    actions = np.zeros((400, 32), np.int64)
    played = [play(actions, seed=seed, length=1) for seed in (0, 0, 1)]
    bits = [p.observation[p.step_type == FIRST][:, 0].reshape(-1, 32) for p in played]
    np.testing.assert_array_equal(bits[0], bits[1])
    both = np.concatenate(bits[1:], axis=1).T
    assert len(np.unique(both, axis=0)) == 64
    assert abs(both.mean()) < 4 / np.sqrt(both.size)


def test_gymnasium_checker():
    check_env(gymnasium.make("MemoryChain-v0", length=2).unwrapped, skip_render_check=True)


def test_bad_arguments():
    for length in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="length must be a whole number of at least 1"):
            environments.make("MemoryChain-v0", length=length)
    with pytest.raises(ValueError, match="did you mean MemoryChain-v0"):
        environments.make("MemoryChain-v1")
    with pytest.raises(ValueError, match="no option 'corridor'; its options are length"):
        environments.make("MemoryChain-v0", corridor=3)
    env = gymnasium.make("MemoryChain-v0").unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
