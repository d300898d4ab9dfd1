"""Cores by name and by object, and equal numbers of parameters."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import cells, layers
from keras_rtrl._keras import keras
from keras_rtrl.networks.cores import make_core, units_for, zeros

CORES = {"rtu": "rtrl", "lru": "rtrl", "elstm": "rtrl", "gru": "tbptt", "lstm": "tbptt", "stack": "tbptt"}


@pytest.mark.parametrize("name", CORES)
def test_units_come_closest_to_the_number_of_parameters(name):
    units = units_for(name, 64, 24_960, CORES[name])
    counts = {}
    for n in (units - 1, units, units + 1):
        core = make_core(name, n, CORES[name], {}, 64)
        core(tf.zeros([1, 2, 64]), tf.zeros([1, 2], tf.bool), zeros(core.state_spec, 1))
        counts[n] = sum(int(tf.size(v)) for v in core.trainable_variables)
    assert min(counts, key=lambda n: abs(counts[n] - 24_960)) == units
    assert abs(counts[units] - 24_960) < 0.02 * 24_960
    if name == "rtu":
        assert (units, counts[units]) == (192, 24_960)  # the paper's
    if name == "gru":
        assert units == 64


def test_stack_sees_the_last_features_of_its_own_episode():
    frames, width, steps = 3, 2, 7
    core = make_core("stack", 1, "tbptt", {"frames": frames, "activation": None}, width)
    core.layer.build([None, frames * width])
    core.layer.kernel.assign(np.arange(1.0, 7).reshape(6, 1))
    core.layer.bias.assign([0.5])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, steps, width)).astype(np.float32)
    reset = np.zeros((2, steps), bool)
    reset[1, 4] = reset[1, 0] = True

    expected, past = np.zeros((2, steps)), np.zeros((2, frames, width))
    for t in range(steps):
        past[reset[:, t]] = 0
        past = np.concatenate([past[:, 1:], x[:, t : t + 1]], axis=1)
        expected[:, t] = past.reshape(2, -1) @ np.arange(1.0, 7) + 0.5

    whole, _ = core(x, tf.constant(reset), core.get_initial_carry(2))
    np.testing.assert_allclose(whole[..., 0], expected, rtol=1e-5)
    for size in (1, 2, 5):
        carry, parts = core.get_initial_carry(2), []
        for start in range(0, steps, size):
            y, carry = core(x[:, start : start + size], tf.constant(reset[:, start : start + size]), carry)
            parts.append(y[..., 0])
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=1e-5)


@pytest.fixture
def float64():
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lstm", {}),
        ("gru", {}),
        ("gru", {"use_bias": False}),
        ("gru", {"reset_after": False}),
        ("lstm", {"recurrent_activation": "hard_sigmoid"}),
    ],
)
def test_core_of_keras_is_its_cell_step_by_step(float64, name, options):
    core = make_core(name, 5, "tbptt", options, 3)
    batch, steps = 2, 6
    draw = np.random.default_rng(0).normal
    x, dy = tf.constant(draw(size=(batch, steps, 3))), tf.constant(draw(size=(batch, steps, 5)))
    reset = np.zeros((batch, steps), bool)
    reset[0, 3] = reset[1, 0] = True
    start = [tf.constant(draw(size=(batch, 5))) for _ in core.state_spec]
    carry = tuple(part._replace(state=state) for part, state in zip(core.state_spec, start, strict=True))
    core(x, tf.constant(reset), carry)
    cell = core.layer.cell
    for weight in cell.weights:
        weight.assign(draw(size=weight.shape))

    def by_core():
        y, new = core(x, tf.constant(reset), carry)
        return y, [part.state for part in new]

    def by_cell():
        states, ys = start, []
        for t in range(steps):
            states = [tf.where(reset[:, t, None], tf.zeros_like(state), state) for state in states]
            y, states = cell(x[:, t], states)
            ys.append(y)
        return tf.stack(ys, axis=1), states

    results = []
    for function in (by_core, by_cell):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, states = function()
            loss = tf.reduce_sum(y * dy) + sum(tf.reduce_sum(state**2) for state in states)
        results.append([y, *states, *tape.gradient(loss, [x, *cell.trainable_variables])])
    assert len(results[0]) == len(results[1]) >= 5
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-13)


def stack():
    return layers.RTRLStack([layers.ELSTM(4), keras.layers.Dense(3), layers.RTU(2)])


class Adder(cells.RTRLCell):
    """s = (s + u) / 2."""

    gates = ("u",)

    def phi(self, state, u, c):
        return ((state[0] + u["u"]) / 2,)


OBJECTS = {
    "cell": lambda: Adder(3),
    "layer": lambda: layers.RTU(3, r_min=0.5),
    "stack": stack,
    "Keras cell": lambda: keras.layers.LSTMCell(3),
    "Keras cells": lambda: keras.layers.StackedRNNCells([keras.layers.LSTMCell(3), keras.layers.GRUCell(4)]),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_object_goes_on_from_its_carry(kind):
    core = make_core(OBJECTS[kind](), None, None, None, 5)
    x = tf.random.stateless_normal([2, 6, 5], [1, 2])
    reset = tf.constant([[False] * 6, [False, False, False, False, True, False]])
    zero = core.get_initial_carry(2)
    for carry, spec in zip(zero, core.state_spec, strict=True):
        assert spec.state.is_compatible_with(carry.state[0])
    whole, end = core(x, reset, zero)
    assert whole.shape == (2, 6, core.output_size)
    assert np.any(whole[0, 0] != whole[0, 1])
    first, carry = core(x[:, :3], reset[:, :3], zero)
    second, carry = core(x[:, 3:], reset[:, 3:], carry)
    np.testing.assert_allclose(tf.concat([first, second], 1), whole, rtol=1e-5, atol=1e-6)
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), carry, end)
    acted, state = core(x, reset, alone(zero))
    np.testing.assert_allclose(acted, whole, rtol=1e-5, atol=1e-6)
    tf.nest.map_structure(np.testing.assert_allclose, state, alone(end))


def alone(carry):
    return tuple(part.without_traces() for part in carry)


def test_a_stack_has_one_carry_a_layer():
    core = make_core(stack(), None, None, None, 5)
    assert [[part.shape[1:].as_list() for part in carry] for carry in core.get_initial_carry(2)] == [
        [[4, 1], [5, 2, 4, 1], [4, 4, 1]],
        [[2, 2], [3, 1, 2, 2], [2, 2, 2]],
    ]
    instant = layers.RTRLStack([layers.ELSTM(4, gradient="tbptt"), layers.RTU(2, gradient="tbptt")])
    assert len(tf.nest.flatten(make_core(instant, None, "tbptt", None, 5).get_initial_carry(2))) == 2


def test_each_core_has_weights_of_its_own():
    layer = layers.RTU(3)
    one, other = (make_core(layer, None, None, None, 5) for _ in range(2))
    for core in (one, other):
        core(tf.ones([1, 2, 5]), tf.zeros([1, 2], tf.bool), core.get_initial_carry(1))
    assert not layer.built
    assert np.any(one.layer.kernel != other.layer.kernel)


@pytest.mark.parametrize(
    ("core", "arguments", "error", "says"),
    [
        (lambda: layers.RTU(3), {"units": 4}, ValueError, "units must be None"),
        (lambda: layers.RTU(3), {"options": {"r_min": 0.5}}, ValueError, "core_options must be None"),
        (lambda: layers.RTU(3), {"gradient": "tbptt"}, ValueError, "gradient must be None .* 'rtrl'; got 'tbptt'"),
        (lambda: layers.RTU(3, stateful=True), {}, ValueError, "core: .* must have stateful=False"),
        (lambda: keras.layers.GRUCell(3), {"gradient": "rtrl"}, ValueError, "core of Keras .* got gradient='rtrl'"),
        (lambda: keras.layers.GRU(3), {}, TypeError, "core must be a name, an RTRLCell,"),
        (lambda: 3, {}, TypeError, "core must be a name, an RTRLCell,"),
        (lambda: "no_such:Cell", {"units": 4}, ValueError, "core: cannot import 'no_such:Cell'"),
        (lambda: "math:pi", {"units": 4}, ValueError, "core must name a class or a function"),
        (lambda: "math:sqrt", {"units": 4}, TypeError, "core must be a name"),
    ],
)
def test_wrong_objects(core, arguments, error, says):
    with pytest.raises(error, match=says):
        make_core(core(), *[{"units": None, "gradient": None, "options": None, **arguments}[name] for name in
                  ("units", "gradient", "options")], 5)  # fmt: skip


def test_built_layer_is_refused():
    layer = layers.RTU(3)
    layer.build((None, None, 5))
    with pytest.raises(ValueError, match=r"core: .* must not have been built"):
        make_core(layer, None, None, None, 5)
