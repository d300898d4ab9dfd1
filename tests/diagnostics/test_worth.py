"""How far a gradient reaches back, on nets so small that every gradient is also known otherwise; in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl._keras import keras
from keras_rtrl.cells import ELSTMCell, RTUCell
from keras_rtrl.diagnostics import Estimate, GradientWorth, mean_estimates, reach
from keras_rtrl.layers import RTRL

B, H, T, D, N = 3, 7, 4, 2, 3


def made(cell=None, past=H):
    """A layer of long memories, a meter of it, inputs with resets, and cotangents of the last T steps."""
    rng = np.random.default_rng(1)
    keras.utils.set_random_seed(1)
    cell = cell or ELSTMCell(N, forget_bias=3.0)
    layer = RTRL(cell, return_sequences=True, return_state=True, dtype="float64")
    x = tf.constant(rng.normal(size=(B, past + T, D)))
    layer.build(x.shape)
    reset = np.zeros([B, past + T], bool)
    reset[0, 3] = reset[1, past + 1] = True
    cotangents = tf.constant(rng.normal(size=(B, T, layer.output_size)))

    def unroll(inputs, carry):
        y, carry = layer.unroll(inputs[0], carry, inputs[1])
        return y, tuple(carry)

    return layer, GradientWorth(unroll, weights(layer)), (x, tf.constant(reset)), cotangents


def weights(layer):
    own = layer.recurrent_weights()
    return {name: weight if isinstance(weight, tf.Variable) else weight.value for name, weight in own.items()}


def by_name(estimates):
    return {estimate.name: estimate for estimate in estimates}


@pytest.mark.parametrize("cell", [RTUCell(N, r_min=0.9), ELSTMCell(N, forget_bias=3.0)], ids=["rtu", "elstm"])
def test_rtrl_by_fixed_weights_is_exact_and_short_truncations_are_not(cell):
    layer, worth, inputs, cotangents = made(cell)
    states = worth.states(inputs, layer.initial_carries(B))
    past = [x[:, :H] for x in inputs]
    _, carry = layer.unroll(past[0], layer.initial_carries(B, traces=True), past[1])
    np.testing.assert_allclose(states[0].state[:, H], carry[0].state, rtol=1e-12)

    rtrl = {"rtrl": (tuple(carry), cotangents)}
    found = by_name(worth.measure(inputs, states, cotangents, steps=H + 1, carried=rtrl))
    assert list(found) == ["exact", "rtrl", "tbptt_1", "tbptt_2", "tbptt_4", "tbptt_8"]
    for figure in (found["rtrl"].cosine, found["rtrl"].norm_ratio, *found["rtrl"].cosines):
        assert figure == pytest.approx(1, abs=1e-10)
    assert found["rtrl"].difference < 1e-9
    assert len(found["rtrl"].cosines) == len(worth.names) == len(layer.recurrent_weights())
    for k in (1, 2, 4):
        assert found[f"tbptt_{k}"].cosine < min(0.999, found["tbptt_8"].cosine)


def test_truncations_are_what_the_layers_own_modes_compute():
    layer, worth, (x, reset), cotangents = made()
    states = worth.states((x, reset), layer.initial_carries(B))
    found = by_name(worth.measure((x, reset), states, cotangents, steps=4, chunk=2))

    def gradient(mode, first, size):
        """Of calls on `size` steps each, from step `first` on."""
        layer.gradient, total = mode, 0
        for begin in range(first, H + T, size):
            part = slice(begin, begin + size)
            with tf.GradientTape() as tape:
                tape.watch(list(weights(layer).values()))
                y, _ = layer.unroll(
                    x[:, part], [carry._replace(state=carry.state[:, begin]) for carry in states], reset[:, part]
                )
                owned = min(T, size)
                product = tf.reduce_sum(y[:, -owned:] * cotangents[:, max(begin - H, 0) :][:, :owned])
            parts = tape.gradient(product, list(weights(layer).values()))
            total += tf.concat([tf.reshape(p, [-1]) for p in parts], 0)
        return total.numpy()

    exact = gradient("rtrl", 0, H + T)
    for name, other in {"tbptt_1": ("instant", H, T), "tbptt_chunks_2": ("tbptt", H, 2)}.items():
        other = gradient(*other)
        norm = np.linalg.norm
        assert found[name].cosine == pytest.approx(exact @ other / norm(exact) / norm(other), abs=1e-10)
        assert found[name].norm_ratio == pytest.approx(norm(other) / norm(exact), rel=1e-10)


def test_weights_below_the_recurrence_are_cut_off_by_chunks_and_have_no_traces():
    layer, worth, (x, reset), cotangents = made()
    below = tf.Variable(np.random.default_rng(2).normal(size=(D, D)))
    below_of = lambda part: x[:, part] @ below  # noqa: E731
    inputs = (below_of(slice(None)), reset)
    states = worth.states(inputs, layer.initial_carries(B))

    def pulled(at_inputs):
        return np.einsum("btd,ebtk->ebdk", x, at_inputs).reshape(*at_inputs.shape[:2], -1)

    def gradient(starts, size):
        """By the layer's own RTRL, from zero traces, in calls on `size` steps each; each has T / len(starts) losses."""
        total, owned = np.zeros(D * D), T // len(starts)
        for i, begin in enumerate(starts):
            part = slice(begin, begin + size)
            with tf.GradientTape() as tape:
                carry = [carry._replace(state=carry.state[:, begin]) for carry in states]
                y, _ = layer.unroll(below_of(part), carry, reset[:, part])
                product = tf.reduce_sum(y[:, -owned:] * cotangents[:, i * owned : (i + 1) * owned])
            total += tape.gradient(product, below).numpy().ravel()
        return total

    rtrl = {"rtrl": (layer.initial_carries(B, traces=True), cotangents)}
    found = worth.measure(inputs, states, cotangents, steps=H + 1, carried=rtrl, chunk=2, below=pulled)
    alone = worth.measure(inputs, states, cotangents, steps=H + 1, carried=rtrl, chunk=2)
    assert [estimate.name for estimate in found] == [estimate.name for estimate in alone]
    for estimate, same in zip(found, alone, strict=True):  # nothing else depends on it
        np.testing.assert_array_equal([*estimate[2:-1], *estimate.cosines[:-1]], [*same[2:-1], *same.cosines])
    found = by_name(found)
    exact = gradient([0], H + T)
    cuts = {"exact": exact, "tbptt_chunks_2": gradient(range(H, H + T, 2), 2)}
    cuts |= {f"tbptt_{k}": gradient(range(H - k + 1, H + T - k + 1), k) for k in (1, 2, 4, 8)}  # these overlap
    for name, cut in cuts.items():
        cosine = exact @ cut / np.linalg.norm(exact) / np.linalg.norm(cut)
        assert found[name].cosines[-1] == pytest.approx(cosine, abs=1e-10)
    assert found["tbptt_chunks_2"].cosines[-1] < 0.99
    assert math.isnan(found["rtrl"].cosines[-1])


def test_truncation_that_covers_everything_is_exact():
    layer, worth, (x, _), cotangents = made(past=3)
    reset = tf.constant(np.arange(3 + T) == 3)[None] | np.zeros([B, 1], bool)  # before the first step with a loss
    states = worth.states((x, reset), layer.initial_carries(B))
    found = worth.measure((x, reset), states, cotangents, steps=4)
    assert by_name(found)["tbptt_4"].cosine == pytest.approx(1, abs=1e-10)  # T steps since the reset
    assert by_name(found)["tbptt_4"].norm_ratio == pytest.approx(1, abs=1e-10)
    assert by_name(found)["tbptt_1"].cosine < 0.999
    last = cotangents[:, -1:]
    found = worth.measure(
        (x[:, -4:], reset[:, :4] & False), tf.nest.map_structure(lambda s: s[:, -4:], states), last, steps=4
    )
    assert by_name(found)["tbptt_4"].cosine == pytest.approx(1, abs=1e-10)  # all there is
    assert by_name(found)["tbptt_2"].cosine < 0.9999


def test_noise_is_the_standard_error_over_streams():
    layer, worth, inputs, cotangents = made()
    states = worth.states(inputs, layer.initial_carries(B))

    def measured(streams):
        pick = lambda x: tf.gather(x, streams)  # noqa: E731
        parts = tf.nest.map_structure(pick, (inputs, states, cotangents))
        return by_name(worth.measure(*parts, steps=1))

    assert measured([0, 0])["exact"].noise == pytest.approx(0, abs=1e-12)
    assert math.isnan(measured([0])["exact"].noise)
    one, two = measured([0, 1]), measured([0, 1, 0, 1])
    assert two["tbptt_1"].noise == pytest.approx(one["tbptt_1"].noise / math.sqrt(3))  # 4 streams for 2: n (n - 1)
    assert two["tbptt_1"].difference == pytest.approx(one["tbptt_1"].difference * math.sqrt(3))


def test_reach_is_where_all_longer_truncations_are_whole():
    def estimates(*cosines):
        figures = [Estimate(f"tbptt_{2**i}", 2**i, c, 1, 0, 0, (c,)) for i, c in enumerate(cosines)]
        return [Estimate("exact", None, 1, 1, 0, 0, (1,)), *figures]

    assert reach(estimates(0.995, 0.98, 0.991, 0.999)) == 4
    assert reach(estimates(0.995, 0.999)) == 1
    assert reach(estimates(0.5, 0.98)) is None
    assert reach(estimates(0.5, math.nan)) is None
    one = Estimate("tbptt_1", 1, 0.995, 1, 0, 0, (0.992, 0.5))
    assert [reach([one], weight) for weight in (None, 0, 1)] == [1, 1, None]
    both = mean_estimates([estimates(0.5), estimates(0.7)])
    assert both[1] == Estimate("tbptt_1", 1, pytest.approx(0.6), 1, 0, 0, (pytest.approx(0.6),))


@pytest.mark.parametrize(("steps", "chunk", "names"), [(0, None, "steps"), (H + 2, None, "steps"), (1, 3, "chunk")])
def test_wrong_sizes_are_refused(steps, chunk, names):
    layer, worth, inputs, cotangents = made()
    states = worth.states(inputs, layer.initial_carries(B))
    with pytest.raises(ValueError, match=names):
        worth.measure(inputs, states, cotangents, steps=steps, chunk=chunk)
