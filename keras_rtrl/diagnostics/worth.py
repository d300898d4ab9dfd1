"""How far back a task's gradient reaches, and what each way to compute it is worth, at the same weights and data."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_rtrl._checks import whole_number

REACHED = 0.99  # cosine with the exact gradient from which on a truncated one counts as whole
STREAMS = 16  # at most so many are measured: more take longer and tell little more
_STEPS_AT_ONCE = 2**14  # of windows in one call: bounds the memory


class Estimate(NamedTuple):
    """One gradient beside the exact one; each is the sum over streams.

    Attributes:
      name: "exact", "tbptt_8", ...
      steps: k of TBPTT(k); None for all others.
      cosine: with the exact gradient. NaN if either is zero.
      norm_ratio: its norm over the exact one's. NaN or infinite if that is zero.
      noise: its standard error over streams, as a norm, over its own norm. NaN for one stream.
      difference: norm of its difference from the exact gradient, over the exact one's standard error. Below 1 the
        difference is less than the noise of this number of streams. NaN for one stream.
      cosines: as `cosine`, of each weight's part alone, in the meter's order. Weights whose gradients are large hide
        the others in `cosine`; optimisers such as Adam scale each by itself. The last is that of the layers below, if
        they are measured; no other figure counts them.
    """

    name: str
    steps: int | None
    cosine: float
    norm_ratio: float
    noise: float
    difference: float
    cosines: tuple[float, ...]


class GradientWorth:
    """Computes gradients of one recurrence that reach back different numbers of steps, and compares them.

    A sequence of H + T steps ends with the T steps that have a loss L; y_t are the outputs, s_t the states, e_t =
    dL / dy_t, theta the weights at their present values, with which all states are computed. With F_k(theta) the
    output y_t as a function of the weights in the last k steps alone, s_{t-k} being held,

        G(k) = sum over streams and t of  e_t . d F_k / d theta          TBPTT(k): every step reaches back k steps
        G    = the same with all steps back to the sequence's start      exact for a memory of up to H steps

    (Williams and Peng 1990, their BPTT(k) with the same states and e_t for every k). G(1) is the instant gradient. RTRL
    computes G if its traces were made with these weights; traces that a run carries were not, which is what `carried`
    measures.

    Args:
      unroll: function of inputs, a nest of tensors [R, L, ...], the first of floats, and of a carry, a nest [R, ...],
        to the outputs [R, L, W] and the carry after them. Its gradient must be exact inside the call, and take in the
        traces of a carry that has some. R and L are not known while it is traced.
      weights: by name, the variables or tensors whose gradient is measured.
    """

    def __init__(self, unroll: Callable[[Any, Any], tuple[tf.Tensor, Any]], weights: dict[str, Any]):
        self._unroll, self._names, self._weights = unroll, tuple(weights), list(weights.values())
        self._sizes = [math.prod(weight.shape) for weight in self._weights]
        self._functions, self._step = {}, tf.function(self._states_before, autograph=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights, in the order of `Estimate.cosines`."""
        return self._names

    def states(self, inputs: Any, start: Any) -> Any:
        """The carries before each step, by the present weights.

        Args:
          inputs: nest of tensors [B, L, ...].
          start: carry without traces [B, ...] before the first of them.

        Returns:
          The structure of `start`, of tensors [B, L, ...].
        """
        return self._step(inputs, start)

    def measure(
        self,
        inputs: Any,
        states: Any,
        cotangents: tf.Tensor,
        *,
        steps: int,
        carried: dict[str, tuple[Any, tf.Tensor]] | None = None,
        chunk: int | None = None,
        below: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[Estimate]:
        """Compares gradients of the last T steps, of the first `STREAMS` streams.

        Args:
          inputs: nest of tensors [B, H + T, ...].
          states: carries before each step, as `states` gives them.
          cotangents: e_t [B, T, W].
          steps: the largest k, at most H + 1. TBPTT(k) is computed for k = 1, 2, 4, ... up to it.
          carried: by name, a carry [B, ...] before the last T steps, and the cotangents with it.
          chunk: also TBPTT as it is trained: in chunks of so many steps, a divisor of T; step i of one reaches back i.
          below: measures the weights of the layers below the recurrence too. A function of dL / d inputs[0], by E
            estimates [E, B, H + T, ...], to those weights' gradients by stream, [E, B, Q]. Traces do not reach below,
            so carried ones have no such cosine: NaN.

        Returns:
          Estimates: exact; carried ones; tbptt_chunks_<chunk>; tbptt_1, tbptt_2, ...

        Raises:
          ValueError: `steps` or `chunk` does not fit.
        """
        length, loss_steps = tf.nest.flatten(inputs)[0].shape[1], cotangents.shape[1]
        past = length - loss_steps
        steps = whole_number("steps", steps, 1, past + 1)
        if chunk is not None and (whole_number("chunk", chunk) > loss_steps or loss_steps % chunk):
            raise ValueError(f"chunk must divide the {loss_steps} steps of the loss, got {chunk}")
        inputs, states, cotangents, carried = tf.nest.map_structure(
            lambda x: x[:STREAMS], (inputs, states, cotangents, carried or {})
        )
        last = tf.nest.map_structure(lambda x: x[:, past:], inputs)
        cuts = {"exact": (None, [0], length)}
        if chunk is not None:
            cuts[f"tbptt_chunks_{chunk}"] = (None, np.arange(past, length, chunk), chunk)
        for k in (2**i for i in range(steps.bit_length())):
            cuts[f"tbptt_{k}"] = (k, np.arange(past, length) - (k - 1), k)
        found = {name: self._cut(inputs, states, cotangents, *cut) for name, (_, *cut) in cuts.items()}
        exact = found["exact"][0]
        under = [()] * len(found)
        if below is not None:
            parts = below(np.stack([at_inputs for _, at_inputs in found.values()])).sum(1)
            under = [(_cosine(part, parts[0]),) for part in parts]
        first, *cut_off = (
            Estimate(name, cuts[name][0], *_compared(gradient, exact, self._sizes, cosine))
            for (name, (gradient, _)), cosine in zip(found.items(), under, strict=True)
        )
        traced = []
        for name, (carry, own) in carried.items():
            at_start = tf.nest.map_structure(lambda x: x[:, tf.newaxis], carry)
            gradient, _ = self._cut(last, at_start, own, [0], loss_steps)
            traced.append(Estimate(name, None, *_compared(gradient, exact, self._sizes, [math.nan for _ in under[0]])))
        return [first, *traced, *cut_off]

    def _cut(self, inputs, states, cotangents, starts, size):
        """Gradients [B, P] of each stream, and dL / d inputs[0], from calls on `size` steps each.

        They begin at `starts`, with the states there. Each takes the last cotangents that belong to its steps: T /
        len(starts) of them.
        """
        streams, loss_steps = cotangents.shape[:2]
        parts = tf.reshape(cotangents, [streams, len(starts), loss_steps // len(starts), -1])
        starts, at_once = np.asarray(starts), max(1, _STEPS_AT_ONCE // size)
        gradients = np.zeros([streams, sum(self._sizes)])
        at_inputs = np.zeros_like(tf.nest.flatten(inputs)[0])
        for stream, first in itertools.product(range(streams), range(0, len(starts), at_once)):
            begins = starts[first : first + at_once]
            steps = begins[:, np.newaxis] + np.arange(size)
            taken = tf.nest.map_structure(lambda x, at=stream, steps=steps: tf.gather(x[at], steps), inputs)
            carry = tf.nest.map_structure(lambda x, at=stream, begins=begins: tf.gather(x[at], begins), states)
            gradient, each = self._gradient(taken, carry, parts[stream, first : first + at_once])
            gradients[stream] += gradient
            np.add.at(at_inputs[stream], steps, each)
        return gradients, at_inputs

    def _gradient(self, inputs, carry, cotangents):
        """sum e . dy / d theta, [P] float64, over rows [R, L, ...] and their last n [R, n, W]; also by inputs[0]."""
        structure = (inputs, carry, cotangents)
        key = str(tf.nest.map_structure(lambda x: x.dtype.name, structure))
        if key not in self._functions:
            free = (2, 1, 2)  # dimensions of each part that differ from call to call: one trace serves all
            specs = [
                tf.TensorSpec([*[None] * count, *x.shape[count:]], x.dtype)
                for part, count in zip(structure, free, strict=True)
                for x in tf.nest.flatten(part)
            ]

            def differentiate(*flat):
                inputs, carry, cotangents = tf.nest.pack_sequence_as(structure, flat)
                sources = [*self._weights, flat[0]]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    y, _ = self._unroll(inputs, carry)
                    product = tf.reduce_sum(y[:, tf.shape(y)[1] - tf.shape(cotangents)[1] :] * cotangents)
                *parts, each = tape.gradient(product, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
                return tf.concat([tf.cast(tf.reshape(part, [-1]), tf.float64) for part in parts], 0), each

            self._functions[key] = tf.function(differentiate, input_signature=specs, autograph=False)
        return [part.numpy() for part in self._functions[key](*tf.nest.flatten(structure))]

    def _states_before(self, inputs, start):
        length = tf.nest.flatten(inputs)[0].shape[1]
        arrays = [tf.TensorArray(x.dtype, length, element_shape=x.shape) for x in tf.nest.flatten(start)]

        def body(t, carry, arrays):
            arrays = [array.write(t, x) for array, x in zip(arrays, tf.nest.flatten(carry), strict=True)]
            _, new = self._unroll(tf.nest.map_structure(lambda x: x[:, t][:, tf.newaxis], inputs), carry)
            return t + 1, tf.nest.pack_sequence_as(carry, tf.nest.flatten(new)), arrays

        _, _, arrays = tf.while_loop(
            lambda t, *_: t < length, body, (tf.constant(0), start, arrays), parallel_iterations=1
        )
        flat = [
            tf.transpose(array.stack(), [1, 0, *range(2, 1 + x.shape.rank)])
            for array, x in zip(arrays, tf.nest.flatten(start), strict=True)
        ]
        return tf.nest.pack_sequence_as(start, flat)


def reach(estimates: Sequence[Estimate], weight: int | None = None) -> int | None:
    """The smallest k from which on every TBPTT(k) has a cosine of at least `REACHED`; None if the largest has less.

    `weight`: number of the weight whose part alone counts; None: all together.
    """
    reached = None
    for estimate in sorted((e for e in estimates if e.steps), key=lambda e: -e.steps):
        if not (estimate.cosine if weight is None else estimate.cosines[weight]) >= REACHED:
            break
        reached = estimate.steps
    return reached


def mean_estimates(measurements: Sequence[Sequence[Estimate]]) -> list[Estimate]:
    """The mean of each figure over several measurements of the same gradients."""

    def over(*same):
        figures = np.mean([estimate[2:-1] for estimate in same], axis=0).tolist()
        return Estimate(*same[0][:2], *figures, tuple(np.mean([e.cosines for e in same], axis=0).tolist()))

    return [over(*same) for same in zip(*measurements, strict=True)]


def _compared(gradients, exact, sizes, below):
    """The figures of an `Estimate` of gradients [B, P] of streams, beside the exact ones; P is made of `sizes`.

    `below`: cosines that follow those of the parts.
    """
    total, whole = gradients.sum(0), exact.sum(0)
    norm, whole_norm = np.linalg.norm(total), np.linalg.norm(whole)
    parts = (np.split(x, np.cumsum(sizes)[:-1]) for x in (total, whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (
            _cosine(total, whole),
            float(norm / whole_norm),
            float(_standard_error(gradients) / norm),
            float(np.linalg.norm(total - whole) / _standard_error(exact)),
            (*(_cosine(one, other) for one, other in zip(*parts, strict=True)), *below),
        )


def _cosine(one, other):
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / norms) if norms else math.nan


def _standard_error(gradients):
    """Norm of the standard error of the sum of gradients [B, P] over streams; NaN for one."""
    streams = len(gradients)
    if streams < 2:
        return math.nan
    return math.sqrt(streams / (streams - 1)) * np.linalg.norm(gradients - gradients.mean(0))
