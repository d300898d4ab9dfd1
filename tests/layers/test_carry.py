"""Control over the carry that a stateful layer keeps: read, write, reset, save, size."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.layers import ELSTM, RTU, RTRLStack, carry

B, T, D, N = 3, 4, 2, 3
rng = np.random.default_rng(1)
X = rng.normal(size=(B, T, D)).astype("float32")


def layer(make=ELSTM, **kwargs):
    made = make(N, stateful=True, **kwargs)
    made.build((B, T, D))
    return made


def test_get_and_set_continue_where_the_carry_was():
    one = layer(RTU)
    one(X)
    one(2 * X, training=False)
    kept, inference = one.get_carry(), one.get_carry(training=False)
    assert [v.shape for v in kept] == [(B, N, 2), (B, D, 1, N, 2), (B, 2, N, 2)]
    assert [v.shape for v in inference] == [(B, N, 2)]
    with tf.GradientTape() as tape:
        y = one(X)
        loss = tf.reduce_sum(y**2)
    want = tape.gradient(loss, one.kernel if isinstance(one.kernel, tf.Variable) else one.kernel.value)
    expected = one(X, training=False)

    other = layer(RTU)  # never called: set_carry makes the carry
    other.set_weights(one.get_weights())
    other.set_carry(kept)
    other.set_carry([v.tolist() for v in inference], training=False)
    with tf.GradientTape() as tape:
        y_other = other(X)
        loss = tf.reduce_sum(y_other**2)
    got = tape.gradient(loss, other.kernel if isinstance(other.kernel, tf.Variable) else other.kernel.value)
    np.testing.assert_array_equal(y_other, y)
    np.testing.assert_array_equal(got, want)  # the traces too were set
    np.testing.assert_array_equal(other(X, training=False), expected)


def test_what_get_carry_returns_is_a_copy():
    one = layer()
    one(X)
    kept = one.get_carry()
    before = [v.copy() for v in kept]
    one(X)
    for a, b in zip(kept, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("streams", [[0, 2], np.array([True, False, True]), np.array([2, 0]), (0, 2, 2)])
def test_chosen_streams_begin_anew(streams):
    one = layer()
    one(X)
    one(X, training=False)
    kept, inference = one.get_carry(), one.get_carry(training=False)
    one.reset_state(streams)
    for before, after in zip((*kept, *inference), (*one.get_carry(), *one.get_carry(training=False)), strict=True):
        assert not after[[0, 2]].any()
        assert before[[0, 2]].any()
        np.testing.assert_array_equal(after[1], before[1])


def test_reset_of_nothing_of_one_stream_and_of_one_carry():
    one = layer()
    one.reset_state([7])  # no carry yet: every stream begins anew anyhow
    one(X)
    one(X, training=False)
    kept = one.get_carry()
    one.reset_state([])
    np.testing.assert_array_equal(one.get_carry()[1], kept[1])
    one.reset_state(1, training=True)
    assert not one.get_carry()[1][1].any()
    assert one.get_carry(training=False)[0][1].any()
    one.reset_state(training=0)
    assert not one.get_carry(training=False)[0].any()
    assert one.get_carry()[0].any()
    one.reset_states()
    assert not any(v.any() for v in one.get_carry())
    one(X, training=False)
    one.reset_states(kept)
    for value, wanted in zip(one.get_carry(), kept, strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert not one.get_carry(training=False)[0].any()


def test_a_reset_by_hand_clears_what_is_not_finite():
    one, x = layer(), X.copy()
    x[1] = np.nan
    one(x)
    one(x, training=False)
    one.reset_state([1])
    for value in (*one.get_carry(), *one.get_carry(training=False)):
        assert np.isfinite(value).all()
        assert not value[1].any()


def test_without_traces_only_the_state_is_kept():
    one = layer(gradient="tbptt")
    one(X)
    assert [v.shape for v in one.get_carry()] == [(B, N, 1)]
    assert one.carry_bytes(B) == 4 * B * N


def test_bytes_are_those_of_the_carry():
    for dtype in ("float32", "float64", "mixed_bfloat16"):
        one = layer(RTU, dtype=dtype)
        one(X)
        assert one.carry_bytes(B) == sum(v.nbytes for v in one.get_carry())
    assert one.carry_bytes(5 * B) == 5 * one.carry_bytes(B)


def test_a_large_carry_is_told_with_its_figure(monkeypatch):
    size = layer().carry_bytes(B)
    monkeypatch.setattr(carry, "machine_memory", lambda: 3 * size)
    one = layer()
    with pytest.warns(UserWarning, match=f"carry of {B} streams takes {size / 2**30:.3g} GiB"):
        one(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one(X)  # told once
        monkeypatch.setattr(carry, "machine_memory", lambda: 5 * size)
        layer()(X)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("float16", "float32"), ("bfloat16", "float32"), ("mixed_float16", "float32"), ("float64", "float64")],
)
def test_the_carry_is_never_narrower_than_float32(dtype, wanted):
    layer = ELSTM(N, return_state=True, dtype=dtype)
    assert layer.trace_dtype == wanted
    assert all(part.dtype == wanted for part in layer(X)[1:])


def test_memory_of_the_machine_is_a_number_of_bytes():
    assert 2**28 < carry.machine_memory() < 2**50


@pytest.mark.parametrize("when", ["before the first call", "after it"])
def test_checkpoints_hold_both_carries(tmp_path, when):
    one = layer()
    one(X)
    one(2 * X, training=False)
    path = tf.train.Checkpoint(layer=one).save(tmp_path / "checkpoint")
    expected, inference = one(X), one(X, training=False)
    other = layer()
    if when == "after it":
        other(X)
        other(X, training=False)
    tf.train.Checkpoint(layer=other).restore(path)
    np.testing.assert_array_equal(tf.function(other)(X), expected)
    np.testing.assert_array_equal(other(X, training=False), inference)


@pytest.mark.parametrize("make", [ELSTM, lambda units, **kw: RTRLStack([ELSTM(units)], **kw)])
def test_files_of_weights_hold_weights_alone(make, tmp_path):
    """As of a stock LSTM: for another batch size too, and no model goes on from a carry that it was not asked for."""

    def model(batch):
        return keras.Sequential([keras.Input((T, D), batch_size=batch), make(N, stateful=True)])

    ending = "" if LEGACY else ".weights.h5"
    saved, targets = model(B), np.ones((B, N), "float32")
    saved.compile("sgd", "mse")
    at_end = keras.callbacks.ModelCheckpoint(str(tmp_path / f"fit{ending}"), save_weights_only=True)
    saved.fit(X, targets, batch_size=B, verbose=0, callbacks=[at_end])
    saved(X, training=False)
    saved.save_weights(str(tmp_path / f"saved{ending}"))
    for name in ("fit", "saved"):
        for batch in (1, B):
            fresh, used = model(batch), model(batch)
            used(X[:batch])
            kept = used.layers[-1].get_carry()
            for loaded in (fresh, used):
                loaded.load_weights(str(tmp_path / f"{name}{ending}"))
                for a, b in zip(loaded.get_weights(), saved.get_weights(), strict=True):
                    np.testing.assert_array_equal(a, b)
            for a, b in zip(used.layers[-1].get_carry(), kept, strict=True):
                np.testing.assert_array_equal(a, b)
            without = make(N)
            without.build((None, None, D))
            without.set_weights(saved.get_weights())
            np.testing.assert_allclose(fresh(X[:batch]), without(X[:batch]), rtol=1e-5, atol=1e-6)


def called():
    one = layer()
    one(X)
    return one


def uneven():
    one = called()
    one(X[:1], training=False)
    return one


def carry_with(index, value):
    values = list(called().get_carry())
    values[index] = value
    return values


@pytest.mark.parametrize("make", [ELSTM, lambda units, **kw: RTRLStack([ELSTM(units)], **kw)])
@pytest.mark.parametrize(
    "value", [tf.constant(False), tf.constant(0), tf.Variable(False), np.array(False), np.bool_(False), 0], ids=repr
)
def test_inference_by_any_value_leaves_the_training_carry_alone(make, value):
    one = make(N, stateful=True)
    one(X)
    before = one.get_carry()
    one(X, training=value)
    for a, b in zip(one.get_carry(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.get_carry(training=False)[0].any()
    one(X, training=not value)
    assert (one.get_carry()[0] != before[0]).any()


@pytest.mark.parametrize("return_state", [False, True])
def test_training_decided_when_the_function_runs(return_state):
    one, other = layer(return_state=return_state), layer(return_state=return_state)
    other.set_weights(one.get_weights())

    @tf.function
    def step(x, training):
        with tf.GradientTape() as tape:
            y = one(x, training=training)
            loss = tf.reduce_sum((y[0] if return_state else y) ** 2)
        return y, tape.gradient(loss, one.kernel if isinstance(one.kernel, tf.Variable) else one.kernel.value)

    for training in (True, False, True, False):
        got, gradient = step(X, tf.constant(training))
        with tf.GradientTape() as tape:
            want = other(X, training=training)
            loss = tf.reduce_sum((want[0] if return_state else want) ** 2)
        kernel = other.kernel if isinstance(other.kernel, tf.Variable) else other.kernel.value
        np.testing.assert_allclose(gradient, tape.gradient(loss, kernel), rtol=1e-5, atol=1e-6)
        for a, b in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for kind in (True, False):
        np.testing.assert_allclose(one.get_carry(kind)[0], other.get_carry(kind)[0], rtol=1e-5)


def test_reset_in_a_function_leaves_no_carry_out():
    one = layer()
    with pytest.raises(ValueError, match=r"reset_state\(\) inside a function would leave out the training carry"):
        tf.function(lambda: one.reset_state())()
    one(X)
    with pytest.raises(ValueError, match=r"leave out the inference carry, .*: call the layer first, or choose one"):
        tf.function(lambda: one.reset_state())()
    tf.function(lambda: one.reset_state(training=True))()
    assert not one.get_carry()[0].any()
    one(X, training=False)
    tf.function(lambda: one.reset_state())()
    assert not one.get_carry(training=False)[0].any()


BAD = {  # call, message
    "not stateful": (lambda: ELSTM(N).get_carry(), "Only a layer with stateful=True keeps a carry"),
    "set not stateful": (lambda: ELSTM(N).set_carry([]), "Only a layer with stateful=True keeps a carry"),
    "training 2": (lambda: called()(X, training=2), "training must be True, False or None, got 2"),
    "two trainings": (lambda: called()(X, training=tf.constant([True, False])), "training must be True, False or None"),
    "text": (lambda: called()(X, training=tf.constant("no")), "training must be True, False or None"),
    "no carry yet": (lambda: layer().get_carry(), "There is no training carry yet"),
    "no inference yet": (lambda: called().get_carry(training=False), "There is no inference carry yet"),
    "get training": (lambda: called().get_carry(training="yes"), "training must be True or False, got 'yes'"),
    "set training": (lambda: called().set_carry([], training=None), "training must be True or False, got None"),
    "not built": (lambda: ELSTM(N, stateful=True).set_carry([]), r"set_carry\(\) needs a built layer"),
    "few values": (lambda: called().set_carry([1]), "values must be a tuple of 3, state, S, r; got 1 values"),
    "no tuple": (lambda: called().set_carry("zero"), "values must be a tuple of 3, state, S, r; got str"),
    "shape": (lambda: called().set_carry(carry_with(1, np.zeros((B, 1)))), r"values: S must have shape \(3, 2, 2"),
    "streams": (lambda: called().set_carry([v[:2] for v in called().get_carry()]), r"values: state .* got \(2, 3, 1\)"),
    "scalars": (lambda: layer().set_carry([1, 1, 1]), r"values: state must have shape \('batch', 3, 1\), got \(\)"),
    "words": (lambda: called().set_carry(carry_with(0, np.full((B, N, 1), "a"))), "values: state must be numbers"),
    "NaN": (lambda: called().set_carry(carry_with(1, np.full((B, D, 2, N, 1), np.nan))), "values: S must be finite"),
    "large": (
        lambda: called().set_carry(carry_with(0, np.full((B, N, 1), 1e99))),
        "values: state .* finite in float32",
    ),
    "index": (lambda: called().reset_state([3]), "streams must be None, indices below 3 .* got"),
    "negative": (lambda: called().reset_state([-1]), "streams must be None, indices below 3"),
    "bools": (lambda: called().reset_state([True]), r"got a bool array of shape \(1,\)"),
    "more bools": (lambda: called().reset_state([True] * (B + 1)), r"got a bool array of shape \(4,\)"),
    "fraction": (lambda: called().reset_state([0.5]), "streams must be None, indices below 3"),
    "symbolic": (
        lambda: tf.function(lambda streams: called().reset_state(streams, training=True))(tf.constant([1])),
        "got a tensor without a value",
    ),
    "sizes": (lambda: uneven().reset_state([2]), "training must be True or False .* has 3 of them .* state 1"),
    "reset training": (lambda: called().reset_state(training="all"), "training must be True, False or None"),
    "bytes not built": (lambda: ELSTM(N).carry_bytes(2), r"carry_bytes\(\) needs a built layer"),
    "batch_size": (lambda: layer().carry_bytes(0), "batch_size must be a whole number of at least 1, got 0"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_get_one_clear_error(bad):
    make, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_carry_leaves_the_kept_one():
    one = called()
    kept = one.get_carry()
    with pytest.raises(ValueError, match="values: r"):
        one.set_carry([kept[0] + 1, kept[1], kept[2][:1]])
    with pytest.raises(ValueError, match="values: r"):
        one.set_carry([kept[0] + 1, kept[1], np.inf * kept[2]])
    np.testing.assert_array_equal(one.get_carry()[0], kept[0])
