"""Exact RTRL of a stack of two recurrent layers, with the traces across layers that `RTRLStack` leaves out.

An oracle for tests and studies of small networks. It goes step by step, by automatic differentiation of `cell.phi`, and
shares no code with the engine.
"""

import math

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_rtrl._checks import fits_memory, shown, whole_number
from keras_rtrl._keras import LEGACY
from keras_rtrl.layers import RTRL, RTRLStack


class TwoLayerRTRL:
    """Exact gradients of an `RTRLStack` of two RTRL layers, at every step, over all the history.

    It carries the dense P_t = d (s1_t, s2_t) / d theta for every trainable weight theta of the stack:

        P_t = A_t P_{t-1} + d (s1_t, s2_t) / d theta at fixed s_{t-1},    A_t = d (s1_t, s2_t) / d (s1_{t-1}, s2_{t-1})

    P holds the derivatives that the stack carries too, d s1 / d theta1 and d s2 / d theta2, and those that the stack
    drops: d s2 / d theta1, and d s / d of the feed-forward weights below. It takes B (N1 m1 + N2 m2) numbers for each
    weight, and a step costs (N1 m1 + N2 m2) times as much. So a few thousand weights are the limit. The weights must
    not change from step to step; otherwise the traces are stale.

    Example:

    >>> exact = TwoLayerRTRL(stack, batch_size=2)
    >>> for t in range(T):
    ...     y = exact.step(x[:, t])                    # [B, W]
    ...     gradients = exact.gradients(2 * y)         # of sum y^2, one for each of stack.trainable_variables

    Args:
      stack: a built `RTRLStack` with two RTRL layers. Its other layers must give the same output at every call.
      batch_size: B.

    Raises:
      TypeError: `stack` is not an RTRLStack.
      ValueError: `stack` is not built, or does not have two RTRL layers.
    """

    def __init__(self, stack: RTRLStack, batch_size: int):
        if not isinstance(stack, RTRLStack):
            raise TypeError(f"stack must be a keras_rtrl.layers.RTRLStack, got {type(stack).__name__}.")
        layers = [layer for layer in stack.layers if isinstance(layer, RTRL)]
        if len(layers) != 2:
            raise ValueError(f"stack must have two RTRL layers, got {len(layers)}.")
        if not stack.built:
            raise ValueError("stack must be built: call it once, or stack.build((None, None, D)).")
        self._batch = whole_number("batch_size", batch_size)
        self._stack, self._layers = stack, layers
        self._variables = [w if LEGACY else w.value for w in stack.trainable_weights]
        self._dtype = stack.compute_dtype
        self._sizes = [math.prod(layer.state_shape) for layer in layers]
        numbers = sum(self._sizes) * sum(math.prod(v.shape) for v in self._variables)
        fits_memory(f"batch_size={self._batch}", self._batch * numbers * tf.as_dtype(self._dtype).size)
        self._advance = tf.function(self._advanced)
        self.reset()

    def reset(self) -> None:
        """Zeroes states and traces of every stream."""
        size = sum(self._sizes)
        self._states = tf.zeros((self._batch, size), self._dtype)
        self._traces = [tf.zeros((self._batch, size, *v.shape), self._dtype) for v in self._variables]
        self._outputs = None

    def step(self, x: ArrayLike, reset: ArrayLike | None = None) -> tf.Tensor:
        """Output [B, W] of one step.

        Args:
          x: [B, D].
          reset: [B] bool, true if a new episode starts with this step; or None.
        """
        x = _tensor("x", x, (self._batch, self._stack._input_dim), self._dtype)
        keep = tf.ones((self._batch,), tf.bool)
        if reset is not None:
            keep = ~_tensor("reset", reset, (self._batch,), tf.bool)
        y, self._states, self._traces, self._outputs = self._advance(x, keep, self._states, self._traces)
        return y

    def gradients(self, cotangent: ArrayLike) -> list[tf.Tensor]:
        """Gradient of the last step's loss with respect to each of the stack's trainable variables.

        Args:
          cotangent: [B, W], the loss' gradient with respect to the last step's output.
        """
        cotangent = _tensor("cotangent", cotangent, (self._batch, self._stack.output_size), self._dtype)
        if self._outputs is None:
            raise ValueError("There is no step yet: call step() first.")
        return [tf.tensordot(cotangent, d_output, 2) for d_output in self._outputs]

    def traces(self, index: int) -> tuple[tf.Tensor, ...]:
        """Derivatives of both layers' states with respect to trainable variable number `index`.

        Returns:
          d s1 / d theta [B, N1, m1, *theta.shape] and d s2 / d theta [B, N2, m2, *theta.shape].
        """
        index = whole_number("index", index, low=0, high=len(self._variables) - 1)
        shape = self._variables[index].shape
        parts = tf.split(self._traces[index], self._sizes, axis=1)
        return tuple(
            tf.reshape(part, (self._batch, *layer.state_shape, *shape))
            for part, layer in zip(parts, self._layers, strict=True)
        )

    def _advanced(self, x, keep, states, traces):
        """Output, states, their derivatives and the output's, after a step."""
        states = tf.where(keep[:, None], states, tf.zeros_like(states))
        with tf.GradientTape() as tape:
            tape.watch(states)
            y, new = self._one_step(x, states)
            both = tf.concat([new, y], axis=1)
        d_states, *directs = tape.jacobian(both, [states, *self._variables], unconnected_gradients="zero")
        A = tf.einsum("bibj->bij", d_states)  # no stream depends on another
        size, totals = sum(self._sizes), []
        for direct, trace in zip(directs, traces, strict=True):
            flat = tf.reshape(trace, (self._batch, size, -1))
            flat = tf.where(keep[:, None, None], flat, tf.zeros_like(flat))
            totals.append(tf.reshape(A @ flat, direct.shape) + tf.cast(direct, self._dtype))
        return y, new, [total[:, :size] for total in totals], [total[:, size:] for total in totals]

    def _one_step(self, x, states):
        old = [
            tf.unstack(tf.reshape(part, (self._batch, *layer.state_shape)), axis=-1)
            for part, layer in zip(tf.split(states, self._sizes, axis=1), self._layers, strict=True)
        ]
        new = []

        def recur(layer, h):
            cell, w = layer.cell, dict(layer.recurrent_weights())
            u = tf.matmul(h[:, 0], tf.convert_to_tensor(w.pop("kernel")))
            u = dict(zip(cell.gates, tf.split(u, len(cell.gates), axis=-1), strict=True))
            rho = {name: tf.convert_to_tensor(weight) for name, weight in w.items()}
            state = cell.phi(tuple(old[len(new)]), u, cell.coefficients(rho))
            new.append(tf.stack(state, axis=-1))
            return tuple(s[:, None] for s in state)

        y = self._stack.wire(x[:, None], recur)[:, 0]
        return y, tf.concat([tf.reshape(s, (self._batch, -1)) for s in new], axis=1)


def _tensor(name, value, shape, dtype):
    """`value` as a tensor of `dtype`; raises unless it is an array or a tensor of numbers, or of bools, of `shape`."""
    try:
        value = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(f"{name} must be an array, got {shown(value)}.") from error
    if value.dtype.kind not in ("b" if dtype is tf.bool else "fiu"):
        raise TypeError(f"{name} must be {'bool' if dtype is tf.bool else 'numbers'}, got {value.dtype.name}.")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}.")
    return tf.constant(value, dtype)
