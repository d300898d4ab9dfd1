"""Interquartile means, their intervals, and the probability of improvement, beside what is known of them otherwise."""

import numpy as np
import pytest

from keras_rtrl.train import statistics


def test_interquartile_mean_is_of_the_middle_half():
    assert statistics.interquartile_mean([100, 1, 2, 3, 4, 5, 6, -50]) == pytest.approx(3.5)
    assert statistics.interquartile_mean([1.0, 2.0, 6.0]) == pytest.approx(3)  # a quarter of three is none


def test_intervals_hold_the_mean_and_shrink_with_more_runs():
    rng = np.random.default_rng(1)
    widths = []
    for runs in (10, 1000):
        values = rng.normal(size=[runs, 3])
        low, high = statistics.interval(values)
        mean = statistics.interquartile_mean(values)
        assert low.shape == high.shape == (3,)
        assert ((values.min(0) <= low) & (low < mean) & (mean < high) & (high <= values.max(0))).all()
        np.testing.assert_array_equal(statistics.interval(values), (low, high))
        widths.append(np.mean(high - low))
    # the mean of a normal's middle half has a variance of about 1.2 / runs
    assert widths[1] == pytest.approx(2 * 1.96 * (1.2 / 1000) ** 0.5, rel=0.1)
    assert 5 < widths[0] / widths[1] < 20


def test_few_runs_have_no_interval():
    assert np.isnan(statistics.interval([1.0, 2.0])).all()
    assert not np.isnan(statistics.interval([1.0, 2.0, 3.0])).any()
    for pair in (([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2]), ([1, 2, np.nan], [1, 2, 3])):
        assert np.isnan(statistics.improvement([pair])).all()
    assert np.isnan(statistics.improvement([])).all()


def test_improvement_counts_the_pairs_that_are_won():
    one, other = [1, 4, 4, 9], [0, 4, 5]
    won = np.mean([(x > y) + 0.5 * (x == y) for x in one for y in other])
    found, low, high = statistics.improvement([(one, other)])
    assert found == pytest.approx(won)
    assert 0 <= low < found < high <= 1
    assert statistics.improvement([([2, 3, 4], [-1, 0, 1])]) == (1, 1, 1)
    assert statistics.improvement([([2, 2, 2], [2, 2, 2])]) == (0.5, 0.5, 0.5)


def test_improvement_over_tasks_draws_runs_of_a_task_from_that_task():
    always, never = ([2000, 2001, 2002], [1000, 1001, 1002]), ([0, 1, 2], [5, 6, 7])
    assert statistics.improvement([always, never]) == (0.5, 0.5, 0.5)
    assert statistics.improvement([always, always, never])[0] == pytest.approx(2 / 3)
