import numpy as np
import pytest

from keras_rtrl import environments
from keras_rtrl.environments.vector import stream_seeds


def test_seeds_of_one_vector_differ():
    """Also where the draws do not, as among 100,000 of 2^31 they will."""
    for seed in range(5):
        drawn = np.random.SeedSequence(seed).generate_state(100_000) >> 1
        seeds = stream_seeds(seed, 100_000)
        assert (seeds.dtype, seeds.shape) == (np.int32, (100_000,))
        assert len(np.unique(seeds)) == 100_000 > len(np.unique(drawn))
        assert seeds.min() >= 0
        first = np.unique(drawn, return_index=True)[1]
        np.testing.assert_array_equal(seeds[first], drawn[first])


def test_seeds_of_neighbouring_vectors_differ():
    seeds = np.concatenate([stream_seeds(seed, 64) for seed in range(64)])
    assert len(np.unique(seeds)) == 64 * 64
    assert (stream_seeds(None, 8) != stream_seeds(None, 8)).all()


def test_seeds_may_be_given():
    seeds = np.array([5, 0, 7], np.int32)
    assert stream_seeds(seeds, 3) is seeds


@pytest.mark.parametrize("seeds", [[1], [1, 2, 2], [1, -2, 3], [1.0, 2.0, 3.0], [[1, 2, 3]]])
def test_bad_seeds(seeds):
    seeds = np.array(seeds)
    seeds = seeds.astype(np.int32) if seeds.dtype.kind == "i" else seeds
    with pytest.raises(ValueError, match="seed must be 3 int32 >= 0, all different, got"):
        stream_seeds(seeds, 3)


def test_a_game_that_reset_cuts_short_adds_nothing_to_the_next():
    env = environments.make("CartPole-v1", 1, seed=0)
    env.reset()
    for _ in range(3):
        env.step(np.zeros(1, np.int64))
    time_step, steps = env.reset(), 0
    while not time_step.is_last():
        time_step, steps = env.step(np.zeros(1, np.int64)), steps + 1
    assert steps > 3
    assert env.finished_games() == [(float(steps), steps, 0)]  # a reward of 1 a step
