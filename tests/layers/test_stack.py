"""RTRLStack: what its gradient is, and that it is one layer to Keras; under Keras 3 and under tf-keras."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.cells import LRUCell
from keras_rtrl.layers import ELSTM, RTRL, RTU, RTRLStack

B, T, D, N, CUT = 2, 6, 4, 3, 4
everything = {"return_sequences": True, "return_state": True}
rng = np.random.default_rng(1)
X = rng.normal(size=(B, T, D))
E = rng.normal(size=(B, T, D))
RESET = np.zeros((B, T), bool)
RESET[1, 2] = True
MASK = np.array([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 1]], bool)


def stack(dtype="float64", parts=None, build=True, **kwargs):
    """Three recurrent layers of two cells with every option, and random weights."""
    keras.utils.set_random_seed(1)
    parts = parts or [
        keras.layers.Dense(D, dtype=dtype),
        ELSTM(N, dtype=dtype),
        keras.layers.Dropout(0.5, dtype=dtype),
        RTU(N, activation="tanh", r_min=0.8, dtype=dtype),
        ELSTM(D, dtype=dtype),
    ]
    made = RTRLStack(parts, residual=True, norm=True, gate=True, dtype=dtype, **kwargs)
    if build:
        made.build((None, None, D))
        noise = np.random.default_rng(2)
        made.set_weights([w + 0.3 * noise.normal(size=w.shape).astype(w.dtype) for w in made.get_weights()])
    return made


def variables(layer):
    return [w if LEGACY else w.value for w in layer.trainable_weights]


def close(got, want, rtol=1e-9):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


def bptt(layer, x, reset=RESET, mask=None, stopped=(), stop_at=None):
    """Outputs by plain TensorFlow, differentiable through all time, and each recurrent layer's states by step.

    The carried states of the layers `stopped` are constants at step `stop_at`.
    """
    history = {}

    def recur(child, h):
        cell, w = child.cell, {name: tf.convert_to_tensor(v) for name, v in child.recurrent_weights().items()}
        u = tf.split(tf.tensordot(h, w.pop("kernel"), 1), len(cell.gates), axis=-1)
        s = tuple(tf.zeros((B, cell.units), h.dtype) for _ in range(cell.components))
        steps = []
        for t in range(x.shape[1]):
            s = tuple(tf.stop_gradient(v) for v in s) if child in stopped and t == stop_at else s
            s = tuple(tf.where(reset[:, t, None], tf.zeros_like(v), v) for v in s)
            new = cell.phi(s, dict(zip(cell.gates, (g[:, t] for g in u), strict=True)), cell.coefficients(w))
            s = new if mask is None else tuple(tf.where(mask[:, t, None], n, o) for n, o in zip(new, s, strict=True))
            steps.append(s)
        history[child] = steps
        return tuple(tf.stack(v, axis=1) for v in zip(*steps, strict=True))

    return layer.wire(tf.convert_to_tensor(x), recur), history


def test_one_chunk_from_a_zero_carry_is_bptt():
    layer, x = stack(return_sequences=True), tf.constant(X)
    for mask in (None, MASK):
        real = 1.0 if mask is None else mask[..., None]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = layer(x, reset=RESET, mask=mask)
            loss = tf.reduce_sum(tf.sin(3 * y) * E * real)
        got = tape.gradient(loss, [*variables(layer), x])
        with tf.GradientTape() as tape:
            tape.watch(x)
            inner = x if mask is None else tf.where(mask[..., None], x, tf.zeros_like(x))
            z, _ = bptt(layer, inner, mask=mask)
            loss = tf.reduce_sum(tf.sin(3 * z) * E * real)
        close(got, tape.gradient(loss, [*variables(layer), x]))
        np.testing.assert_allclose(y * real, z * real, rtol=1e-10)


@pytest.fixture(scope="module")
def pair():
    """Two recurrent layers, and gradients of the loss on the last chunk alone, by weights of the lower and the top."""
    keras.utils.set_random_seed(3)
    parts = [ELSTM(N, dtype="float64"), RTU(N, activation="tanh", r_min=0.8, dtype="float64")]
    layer = RTRLStack(parts, dtype="float64", **everything)
    layer.build((None, None, D))
    noise = np.random.default_rng(2)
    layer.set_weights([w + 0.4 * noise.normal(size=w.shape) for w in layer.get_weights()])
    lower, top = layer.layers
    e = rng.normal(size=(B, T, 2 * N))
    _, *carry = layer(X[:, :CUT], reset=RESET[:, :CUT])
    with tf.GradientTape() as tape:
        y, *_ = layer(X[:, CUT:], initial_state=carry, reset=RESET[:, CUT:])
        loss = tf.reduce_sum(tf.sin(3 * y) * e[:, CUT:])
    got = tape.gradient(loss, [variables(lower), variables(top)])

    def exact(**how):
        with tf.GradientTape() as tape:
            y, _ = bptt(layer, X, **how)
            loss = tf.reduce_sum((tf.sin(3 * y) * e)[:, CUT:])
        return tape.gradient(loss, [variables(lower), variables(top)])

    return layer, e, got, exact


def test_across_chunks_the_top_layer_is_exact(pair):
    _, _, (_, top), exact = pair
    close(top, exact()[1])


def test_across_chunks_lower_layers_keep_their_own_history_and_the_chunk(pair):
    layer, _, (lower, _), exact = pair
    close(lower, exact(stopped=layer.layers[1:], stop_at=CUT)[0])
    for stopped in ((), layer.layers):  # nothing dropped; plain truncation
        other = exact(stopped=stopped, stop_at=CUT)[0]
        assert np.linalg.norm(lower[0] - other[0]) > 1e-2 * np.linalg.norm(other[0])


def test_what_is_dropped_is_the_lower_weights_influence_on_the_carried_upper_state(pair):
    layer, e, (lower, _), exact = pair
    bottom, top = layer.layers
    with tf.GradientTape(persistent=True) as tape:
        y, history = bptt(layer, X)
        loss = tf.reduce_sum((tf.sin(3 * y) * e)[:, CUT:])
        carried = history[top][CUT - 1]  # the upper state at the chunk's start
    through = tape.gradient(loss, carried)
    dropped = tape.gradient(carried, variables(bottom), output_gradients=through)
    close([a + b for a, b in zip(lower, dropped, strict=True)], exact()[0])


def test_wiring_is_that_of_layers_composed_by_hand():
    layer = stack(return_sequences=True)
    dense, one, _, two, three = layer.layers
    weights = {w.path if not LEGACY else w.name.split(":")[0]: np.array(w) for w in layer.weights}
    weights = {"/".join(name.split("/")[-2:]): value for name, value in weights.items()}

    def block(child, at, h):
        centred = h - h.mean(-1, keepdims=True)
        normed = centred / np.sqrt(h.var(-1, keepdims=True) + 1e-3)
        normed = normed * weights[f"norm_{at}/gamma"] + weights[f"norm_{at}/beta"]
        alone = type(child).from_config({**child.get_config(), "return_sequences": True})
        alone.build(normed.shape)
        alone.set_weights(child.get_weights())
        y = np.array(alone(normed, reset=RESET))
        value = y @ weights[f"value_{at}/kernel"] + weights[f"value_{at}/bias"]
        gate = y @ weights[f"gate_{at}/kernel"] + weights[f"gate_{at}/bias"]
        return h + value / (1 + np.exp(-gate))

    h = np.array(dense(X))
    for at, child in ((1, one), (3, two), (4, three)):
        h = block(child, at, h)
    np.testing.assert_allclose(layer(X, reset=RESET), h, rtol=1e-9)
    layer.return_sequences = False
    np.testing.assert_allclose(layer(X, reset=RESET), h[:, -1], rtol=1e-9)


def test_stateful_equals_an_explicit_carry_and_inference_leaves_it_alone():
    own, explicit = stack(stateful=True, return_sequences=True), stack(**everything)
    carry = explicit.get_initial_state(B, traces=True)
    for lo, hi in ((0, 2), (2, 5), (5, 6)):
        with tf.GradientTape(persistent=True) as tape:
            y = own(X[:, lo:hi], reset=RESET[:, lo:hi])
            z, *carry = explicit(X[:, lo:hi], initial_state=carry, reset=RESET[:, lo:hi])
            losses = tf.reduce_sum(y**2), tf.reduce_sum(z**2)
        np.testing.assert_allclose(y, z, rtol=1e-12)
        close(tape.gradient(losses[0], variables(own)), tape.gradient(losses[1], variables(explicit)), 1e-11)
        first = own(3 * X, training=False)
    assert np.abs(own(3 * X, training=False) - first).max() > 1e-4  # its own state was carried
    close(own.get_carry(), carry, 1e-12)
    assert own.carry_bytes(B) == sum(np.array(v).nbytes for v in carry)
    assert len(own.get_carry(training=False)) == 3
    own.reset_state([1])
    assert not any(v[1].any() for v in own.get_carry())
    close([v[0] for v in own.get_carry()], [v[0] for v in carry], 1e-12)
    own.set_carry(carry)
    close(own.get_carry(), carry, 1e-12)


def test_a_layer_that_needs_no_traces_keeps_none():
    layer = RTRLStack([ELSTM(N, gradient="tbptt"), ELSTM(N)], stateful=True)
    layer(X)
    assert [v.ndim for v in layer.get_carry()] == [3, 3, 5, 4]


def test_checkpoints_hold_every_weight_and_the_carry(tmp_path):
    layer, other = stack("float32", stateful=True), stack("float32", stateful=True)
    other.set_weights([w + 1 for w in other.get_weights()])
    layer(X)
    path = tf.train.Checkpoint(layer=layer).save(tmp_path / "checkpoint")
    other(X)
    tf.train.Checkpoint(layer=other).restore(path).assert_existing_objects_matched()
    close(other.get_weights(), layer.get_weights(), 0)
    close(other.get_carry(), layer.get_carry(), 0)


def test_masked_steps_hold_output_and_carry():
    layer, x = stack(**everything), X.copy()
    x[~MASK] = np.nan
    y, *carry = layer(x, mask=MASK)
    for b in range(B):
        z, *alone = layer(X[b : b + 1, MASK[b]])
        close([v[b] for v in carry], [v[0] for v in alone], 1e-9)
        counts = np.cumsum(MASK[b])
        for t in range(T):
            want = z[0, counts[t] - 1] if counts[t] else np.zeros(D)
            np.testing.assert_allclose(y[b, t], want, rtol=1e-9)
    layer.return_sequences = False
    np.testing.assert_allclose(layer(x, mask=MASK)[0], y[:, -1], rtol=1e-12)
    automatic = layer(
        keras.layers.Masking(9.0, dtype="float64")(tf.where(MASK[..., None], X, 9.0)), reset=np.zeros((B, T), bool)
    )
    np.testing.assert_allclose(automatic[0], y[:, -1], rtol=1e-12)


def test_what_comes_back_and_its_symbolic_shapes():
    layer = stack("float32", **everything)
    x = X.astype("float32")
    y, *carry = layer(x)
    shapes = [(N, 1), (D, 2, N, 1), (4, N, 1), (N, 2), (D, 1, N, 2), (2, N, 2), (D, 1), (D, 2, D, 1), (4, D, 1)]
    assert [tuple(c.shape) for c in carry] == [(B, *s) for s in shapes]
    fresh = stack("float32", build=False, **everything)
    for found in (layer, fresh):  # before it is built too
        assert [tuple(s) for s in found.compute_output_shape((B, T, D))] == [tuple(v.shape) for v in (y, *carry)]
    states = carry[::3]
    assert [tuple(v.shape) for v in layer(x, initial_state=states)] == [(B, T, D), *(tuple(v.shape) for v in states)]

    given = keras.Input((None, D))
    inner = layer(given)
    again = layer(given, initial_state=list(inner[1:]))
    alone = layer(given, initial_state=list(inner[1::3]))
    model = keras.Model(given, [*inner, again[0], alone[0]])
    assert [tuple(v.shape[1:]) for v in model.outputs[1:10]] == shapes
    got = model(x)
    want = layer(x, initial_state=carry)[0]
    np.testing.assert_allclose(got[10], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[11], want, rtol=1e-5, atol=1e-6)


def test_stateless_layers_see_training():
    layer = RTRLStack([ELSTM(N), keras.layers.Dropout(0.5)])
    x = X.astype("float32")
    assert np.abs(layer(x, training=True) - layer(x, training=True)).max() > 1e-3  # drawn anew
    np.testing.assert_array_equal(layer(x, training=False), layer(x, training=False))


def test_a_copy_can_be_built_for_another_width():
    layer = stack("float32")
    again = RTRLStack.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again(X[..., :2]).shape == (B, D)


def elstm(**kwargs):
    return ELSTM(N, **kwargs)


@functools.cache
def plain():
    return stack("float32")


Z = np.zeros((B, T, D), "float32")
shared = elstm()
narrow = elstm()
narrow.build((None, None, 2))
BAD = {
    "no list": (lambda: RTRLStack(elstm()), TypeError, "layers must be a list of layers, got ELSTM"),
    "empty": (lambda: RTRLStack([]), ValueError, r"layers must hold at least one RTRL layer, got \[\]"),
    "no RTRL": (lambda: RTRLStack([keras.layers.Dense(2)]), ValueError, r"at least one RTRL layer, got \['Dense'\]"),
    "no layer": (lambda: RTRLStack([elstm(), "dense"]), TypeError, r"layers\[1\] must be a keras layer, got str"),
    "twice": (lambda: RTRLStack([shared, shared]), ValueError, r"layers\[1\] \(ELSTM\) comes twice"),
    "stateful": (lambda: RTRLStack([elstm(stateful=True)]), ValueError, "stateful must be False inside a stack"),
    "state": (lambda: RTRLStack([elstm(return_state=True)]), ValueError, "return_state must be False inside"),
    "zero": (lambda: RTRLStack([elstm(zero_output_for_mask=True)]), ValueError, "zero_output_for_mask must be False"),
    "activity": (lambda: RTRLStack([elstm(activity_regularizer="l2")]), ValueError, "activity_regularizer must be"),
    "LSTM": (lambda: RTRLStack([elstm(), keras.layers.LSTM(2)]), ValueError, r"layers\[1\] \(LSTM\) must be an RTRL"),
    "stack": (lambda: RTRLStack([elstm(), RTRLStack([elstm()])]), ValueError, "it holds a recurrent layer"),
    "hidden": (lambda: RTRLStack([elstm(), keras.layers.TimeDistributed(elstm())]), ValueError, "holds a recurrent"),
    "residual": (
        lambda: RTRLStack([elstm()], residual=True)(Z),
        ValueError,
        "residual: .* width 4 and .* width 3; .*gate",
    ),
    "residual, wider": (lambda: RTRLStack([ELSTM(D + 2)], residual=True)(Z), ValueError, "width 4 and .* width 6"),
    "time": (lambda: RTRLStack([elstm(), keras.layers.Flatten()])(Z), ValueError, "must act on each step alone"),
    "built": (lambda: RTRLStack([narrow])(Z), ValueError, r"was built for 2 features and gets 4 here"),
    "width": (lambda: RTRLStack([elstm()])(keras.Input((3, None))), ValueError, "with features known"),
    "bytes": (lambda: RTRLStack([elstm()]).carry_bytes(2), ValueError, "needs a built layer"),
    "output_size": (lambda: RTRLStack([elstm()]).output_size, ValueError, "output_size needs a built layer"),
    "rank": (lambda: plain()(Z[0]), ValueError, "sequences must have shape"),
    "features": (lambda: plain()(Z[..., :2]), ValueError, "4 features as this layer was built for, got 2"),
    "integer": (lambda: plain()(Z.astype("int32")), TypeError, "sequences must be floating"),
    "states": (
        lambda: plain()(Z, initial_state=[Z, Z]),
        ValueError,
        r"the 3 states alone or \[state_1, S_1, ",
    ),
    "shape": (lambda: plain()(Z, initial_state=[Z, Z, Z]), ValueError, "state_1 must have shape"),
    "reset": (lambda: plain()(Z, reset=np.zeros(B, bool)), ValueError, "reset must have shape"),
    "mask": (lambda: plain()(Z, mask=np.zeros(B, bool)), ValueError, "mask must have shape"),
    "causal": (
        lambda: RTRLStack([elstm(), keras.layers.Conv1D(4, 2, padding="causal")]),
        ValueError,
        r"layers\[1\] \(Conv1D\) must act on each step alone: its kernel_size must be 1, got 2",
    ),
    "depthwise": (
        lambda: RTRLStack([keras.Sequential([keras.layers.DepthwiseConv1D(3, padding="same")]), elstm()]),
        ValueError,
        r"layers\[0\] \(Sequential\) must act on each step alone: its kernel_size",
    ),
    "batch": (lambda: RTRLStack([elstm()], stateful=True)(keras.Input((3, 2))), ValueError, "known batch size"),
    "carry": (
        lambda: RTRLStack([elstm()], stateful=True)(Z, initial_state=[np.zeros((B, N, 1))]),
        ValueError,
        "initial_state must be left out",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_get_one_clear_error(bad):
    make, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        make()


def test_convolutions_of_one_step_are_allowed():
    stack = RTRLStack([elstm(), keras.layers.Conv1D(4, 1), keras.layers.SeparableConv1D(2, 1)])
    assert stack(Z).shape == (B, 2)


def test_hdf5_files(tmp_path):
    stack = RTRLStack([elstm(), keras.layers.Dense(4), RTRL(LRUCell(3))])
    for layer in (stack, RTRL(LRUCell(3))):
        model = keras.Sequential([keras.Input((5, 2)), layer])
        model.save(str(tmp_path / "model.h5"))
        loaded = keras.models.load_model(str(tmp_path / "model.h5"))
        assert type(loaded.layers[0]) is type(layer)
        np.testing.assert_allclose(loaded(np.ones((3, 5, 2))), model(np.ones((3, 5, 2))), rtol=1e-6)
