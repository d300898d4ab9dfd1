"""How runs of several seeds are told and compared, by scipy, as Agarwal et al. (2021) recommend."""

import warnings

import numpy as np
from scipy import stats

FEWEST = 3  # seeds: of fewer, no interval is given
_RESAMPLES = 2000


def interquartile_mean(values, axis=0):
    """Mean of the middle half of `values` along `axis`: a quarter of them, rounded down, is left out at either end."""
    return stats.trim_mean(values, 0.25, axis)


def interval(values):
    """95 % bootstrap interval (percentiles) of the interquartile mean over the first axis.

    Args:
      values: [runs, ...]; some may be NaN.

    Returns:
      (low, high), arrays [...]; NaN for fewer than `FEWEST` runs.
    """
    values = np.asarray(values, float)
    if len(values) < FEWEST:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    return _bootstrap((values,), interquartile_mean, 0)


def improvement(pairs):
    """Probability that a run of the first kind scores above one of the second, a tie counting half; mean over tasks.

    It is the statistic of Mann and Whitney over the number of pairs of runs. Its 95 % bootstrap interval is stratified:
    the runs of each kind on each task are drawn anew among themselves.

    Args:
      pairs: for each task, the scores of the first kind's runs and those of the second's.

    Returns:
      (probability, low, high), floats; NaN if any kind has fewer than `FEWEST` runs on a task, or a NaN.
    """
    samples = [np.asarray(values, float) for pair in pairs for values in pair]
    if not samples or any(len(values) < FEWEST or np.isnan(values).any() for values in samples):
        return np.nan, np.nan, np.nan
    return float(_improvement(*samples)), *map(float, _bootstrap(samples, _improvement, -1))


def _improvement(*samples, axis=-1):
    shares = []
    for one, other in zip(samples[::2], samples[1::2], strict=True):
        with warnings.catch_warnings(action="ignore"):  # of its p-value, which is not used, if all values are equal
            counted = stats.mannwhitneyu(one, other, axis=axis, method="asymptotic").statistic
        shares.append(counted / (one.shape[axis] * other.shape[axis]))
    return np.mean(shares, axis=0)


def _bootstrap(samples, statistic, axis):
    """Each sample is drawn from by itself. The same samples give the same interval."""
    rng = np.random.default_rng(0)
    found = stats.bootstrap(
        samples, statistic, axis=axis, n_resamples=_RESAMPLES, batch=100, method="percentile", vectorized=True, rng=rng
    )
    return found.confidence_interval
