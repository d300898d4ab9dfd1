"""In-graph CartPole without velocities, held against gymnasium's and popgym's with the same starts and actions."""

import gymnasium
import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import environments

FIRST, MID, LAST = 0, 1, 2
STREAMS, STEPS = 4, 700
NAMES = ["CartPole-P-v1", *(f"popgym-PositionOnlyCartPole{level}-v0" for level in ("Easy", "Medium", "Hard"))]


def balancing(body):
    """The action that keeps the pole up, which the hidden velocities tell."""
    return int(body[2] + 0.3 * body[3] + 0.02 * body[0] + 0.1 * body[1] > 0)


# popgym's differ by their time limits.
@pytest.mark.parametrize("name", [*NAMES[:2], *(pytest.param(name, marks=pytest.mark.full) for name in NAMES[2:])])
def test_equals_the_simulator(name):
    """Stream 0 and 1 balance up to the time limit; 2 and 3 play at random.

    Every step begins from the same float64 state, since what rounds otherwise would grow: the pole is unstable.
    """
    if name.startswith("popgym"):
        pytest.importorskip("popgym.envs")
    env = environments.make(name, num_envs=STREAMS, seed=3)
    twin = environments.make(name, num_envs=1, seed=3, engine="gymnasium")
    for spec, other in ((env.observation_spec(), twin.observation_spec()), (env.action_spec(), twin.action_spec())):
        assert spec.shape == other.shape
        np.testing.assert_array_equal(spec.minimum, other.minimum)
        np.testing.assert_array_equal(spec.maximum, other.maximum)
    plain = [gymnasium.make(name, disable_env_checker=True) for _ in range(STREAMS)]
    step = tf.function(env.step, jit_compile=True)
    rng, time_step, done = np.random.default_rng(0), env.reset(), [True] * STREAMS
    expected, kinds = [None] * STREAMS, []
    for _ in range(STEPS):
        bodies = env.variables[1].numpy()
        for i in range(STREAMS):
            if done[i]:
                plain[i].reset(seed=0)
                plain[i].unwrapped.state = bodies[i]
                expected[i] = (bodies[i][[0, 2]], 0.0, False, FIRST)
                assert (abs(bodies[i]) < 0.05).all()
            observation, reward, terminated, kind = expected[i]
            np.testing.assert_allclose(time_step.observation[i], observation, rtol=1e-6, atol=1e-7)
            assert time_step.reward[i].numpy() == np.float32(reward)
            assert (time_step.step_type[i], time_step.discount[i]) == (kind, 0.0 if terminated else 1.0)
            done[i] = kind == LAST
            kinds += [terminated] if done[i] else []
        actions = rng.integers(0, 2, STREAMS)
        actions[:2] = [balancing(body) for body in bodies[:2]]
        for i in range(STREAMS):
            if not done[i]:
                plain[i].unwrapped.state = bodies[i]
                observation, reward, terminated, truncated, _ = plain[i].step(int(actions[i]))
                expected[i] = (observation, reward, terminated, LAST if terminated or truncated else MID)
        time_step = step(tf.constant(actions))
    assert {True, False} == set(kinds)  # falls and time limits


def test_starts_are_uniform():
    env = environments.make("CartPole-P-v1", num_envs=20_000, seed=0)
    env.reset()
    body = env.variables[1].numpy()
    assert abs(body).max() < 0.05
    np.testing.assert_allclose(body.mean(0), 0, atol=5 * 0.1 / np.sqrt(12 * 20_000))
    np.testing.assert_allclose(body.std(0), 0.1 / np.sqrt(12), rtol=0.03)
    assert abs(np.corrcoef(body.T) - np.eye(4)).max() < 0.04


def test_engines():
    assert environments.make("CartPole-P-v1", engine="gymnasium").reset().observation.shape == (1, 2)
    with pytest.raises(ValueError, match="no environment is called 'CartPole-P-v2'; did you mean CartPole-P-v1"):
        environments.make("CartPole-P-v2")
