"""Figures about a recurrent layer in training: how far its state remembers, how large its traces are."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_rtrl.engine.blocks import dense, matmul, product
from keras_rtrl.engine.cell import ByName, RTRLCell, local_derivatives

MEMORY_CAP = 1e6  # steps; float32 cannot tell a longer memory from an endless one


def jacobians(
    cell: RTRLCell,
    *,
    kernel: tf.Tensor,
    rho: ByName,
    x: tf.Tensor,
    start: tf.Tensor,
    states: Sequence[tf.Tensor],
    reset: tf.Tensor | None = None,
) -> tuple[tuple[tf.Tensor, ...], ...]:
    """J_t = d s_t / d s_{t-1} of every step of a chunk (rtrl-math.md, section 1), without the factor k of a reset.

    Args:
      cell: an `RTRLCell`.
      kernel: W [D, G N].
      rho: per-unit parameters by name, each [N].
      x: inputs [B, T, D].
      start: state before the chunk [B, N, m].
      states: states after each step, m tensors [B, T, N].
      reset: [B, T] bool, true if a new episode starts with x_t: J_t is then taken at a state of zero.

    Returns:
      m rows of m tensors [B, T, N].
    """
    first = tf.unstack(start, axis=-1)
    previous = tuple(tf.concat([s0[:, None], s[:, :-1]], axis=1) for s0, s in zip(first, states, strict=True))
    if reset is not None:
        previous = tuple(tf.where(reset[..., None], tf.zeros_like(s), s) for s in previous)
    u = dict(zip(cell.gates, tf.split(product(x, kernel), len(cell.gates), axis=-1), strict=True))
    local = local_derivatives(cell, previous, u, rho, cell.coefficients(rho))
    return dense(local.J, previous[0])


def decay(J: tuple[tuple[tf.Tensor, ...], ...], mask: tf.Tensor | None = None) -> tf.Tensor:
    """How much of a state is left after k steps, at lags k = 1, 2, 4, ... up to the chunk's length.

    At each lag the spectral norm of J_t J_{t-1} ... J_{t-k+1} is averaged over streams and over every t of the chunk
    that has k steps before it. The average is divided by that of half the lag at the same t (by 1 for k = 1).

    Args:
      J: m rows of m tensors [B, T, N], m 1 or 2, T known.
      mask: [B, T] bool, false at steps that are left out; None: none is.

    Returns:
      [L, N] float64: the ratios, lag after lag. If no step has enough steps before it, the decay is continued at its
      last rate. NaN if no step counts at all.
    """
    steps = J[0][0].shape[1]
    if mask is None:
        real = tf.fill((tf.shape(J[0][0])[0],), steps)
    else:  # the steps that count come first
        order = tf.argsort(tf.cast(~mask, tf.int32), axis=1, stable=True)
        J = tuple(tuple(tf.gather(entry, order, batch_dims=1) for entry in row) for row in J)
        real = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
    products, lag, ratios = J, 1, []
    shorter = tf.ones_like(J[0][0])
    ratio = tf.fill(tf.shape(shorter)[2:], tf.constant(np.nan, tf.float64))
    while lag <= steps:
        norms = _spectral_norm(products)  # [B, T - lag + 1, N], of the steps t = lag - 1, ..., T - 1
        counted = (tf.range(lag - 1, steps) < real[:, None])[..., None]
        now, before = (
            tf.reduce_sum(tf.where(counted, tf.cast(n, tf.float64), tf.zeros([], tf.float64)), (0, 1))
            for n in (norms, shorter)
        )
        going_on = ratio if lag <= 2 else ratio**2  # each interval but the second is twice the one before
        ratio = tf.where(tf.reduce_any(counted), tf.math.divide_no_nan(now, before), going_on)
        ratios.append(ratio)
        shorter = norms[:, lag:]
        late, early = (
            tuple(tuple(entry[:, part] for entry in row) for row in products)
            for part in (slice(lag, None), slice(None, -lag))
        )
        products = matmul(late, early)
        lag *= 2
    return tf.stack(ratios)


def memory_length(ratios: ArrayLike) -> np.ndarray:
    """Effective memory length of each unit in steps: the sum of its decay D(k) over all lags k = 0, 1, 2, ...

    D(0) = 1, and between the lags that `decay` gives, and past the last, D is continued geometrically; so a state that
    shrinks by rho at each step has 1 / (1 - rho).

    Args:
      ratios: [L, N] as `decay` gives them.

    Returns:
      [N], at least 1 and at most MEMORY_CAP, which also stands for a state that does not decay.
    """
    length, level, span, rate = 0.0, 1.0, 1, 0.0
    for i, ratio in enumerate(np.asarray(ratios, np.float64)):
        span = max(1, 2 ** (i - 1))  # lags from the one before to this one: 0 to 1, 1 to 2, 2 to 4, ...
        rate = ratio ** (1 / span)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(rate == 1, span, (1 - ratio) / (1 - rate))
        length, level = length + level * terms, level * ratio
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.where(level == 0, 0.0, np.where(rate < 1, level / (1 - rate), np.inf))
    return np.minimum(length + tail, MEMORY_CAP)


def trace_norms(traces: tf.Tensor) -> tf.Tensor:
    """Frobenius norm of each block of traces [B, blocks, ...], averaged over streams: [blocks]."""
    return tf.reduce_mean(tf.sqrt(tf.reduce_sum(traces**2, tuple(range(2, traces.shape.rank)))), axis=0)


def _spectral_norm(block):
    """Largest singular value of m x m matrices, m 1 or 2, whose entries are tensors."""
    if len(block) == 1:
        return tf.abs(block[0][0])
    (a, b), (c, d) = block
    return (tf.sqrt((a + d) ** 2 + (b - c) ** 2) + tf.sqrt((a - d) ** 2 + (b + c) ** 2)) / 2
