"""What learners do with updates: those they make, those they skip, and models that they refuse."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import layers
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.export import learner

B, T, D, N, W = 2, 3, 4, 5, 2
RATE, BOUND = 0.1, 5.0


def model_of(*between, head=None, **core):
    keras.utils.set_random_seed(2)
    cells = [layers.ELSTM(N, return_sequences=True, name="elstm", **core), *between]
    head = head or keras.layers.Dense(W, name="y")
    return keras.Sequential([keras.Input((None, D), name="x"), *cells, head], name="model")


def lesson(seed=0, rows=B, steps=T):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, steps, D)).astype("float32"),
        "targets": rng.normal(size=(rows, steps, W)).astype("float32"),
        "sample_weight": np.ones((rows, steps), "float32"),
        "reset": np.zeros((rows, steps), bool),
    }


def call(function, **given):
    out = function(**{name: tf.constant(value) for name, value in given.items()})
    return {name: value.numpy() for name, value in out.items()}


def of(kind, state):
    return {name: value for name, value in state.items() if name.startswith(kind)}


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def made():
    model = model_of()
    optimizer = keras.optimizers.SGD(RATE, momentum=0.9)
    module = learner(model, optimizer=optimizer, loss="mse", max_gradient_norm=BOUND)
    call(module.start, batch_size=B)
    return module, call(module.get), model


@pytest.fixture
def taught(made):
    """A learner of two streams, free in their number, that has seen one lesson."""
    module, state, _ = made
    call(module.set, **state)
    call(module.learn, **lesson(1))
    return module


def test_the_gradient_reaches_through_what_was_predicted(made):
    """It is that of back-propagation through all steps, of the loss on the last ones."""
    module, state, model = made
    call(module.set, **state)
    past, now = lesson(2), lesson(3)
    call(module.predict, x=past["x"], reset=past["reset"])
    call(module.predict, x=now["x"][:, :1], reset=now["reset"][:, :1])
    seen = np.concatenate([past["x"], now["x"]], 1)
    with tf.GradientTape() as tape:
        y = model(seen)[:, T + 1 :]
        loss = tf.reduce_mean(tf.square(y - now["targets"][:, 1:]))
    wanted = tape.gradient(loss, [weight if LEGACY else weight.value for weight in model.trainable_variables])
    before = [np.array(weight) for weight in model.get_weights()]
    out = call(module.learn, **{name: value[:, 1:] for name, value in now.items()})
    np.testing.assert_allclose(out["y"], y, atol=1e-6)
    assert out["applied"]
    for gradient, old, new in zip(wanted, before, model.get_weights(), strict=True):
        np.testing.assert_allclose(old - new, RATE * gradient, atol=1e-6)


@pytest.mark.parametrize("fault", ["targets", "norm"])
def test_an_update_is_skipped_and_the_carry_moves(taught, fault):
    given = lesson()
    given["targets"][0, 0, 0] = {"targets": np.nan, "norm": 1e4}[fault]
    before = call(taught.get)
    predicted = call(taught.predict, x=given["x"], reset=given["reset"])
    moved = call(taught.get)
    call(taught.set, **before)
    out, after = call(taught.learn, **given), call(taught.get)
    assert not out["applied"]
    assert (out["gradient_norm"] > BOUND) == (fault == "norm")
    assert same(of("weight", before), after)
    assert same(of("optimizer", before), after)
    assert same(of("carry", moved), after)
    np.testing.assert_allclose(out["y"], predicted["y"], atol=1e-6)
    assert (after["count_skipped"], after["count_updates"], after["count_held"]) == (1, 1, 0)


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("what", ["predict", "learn"])
def test_a_stream_whose_carry_is_not_finite_keeps_the_one_before(taught, what, anew):
    given = lesson()
    clean = call(taught.get)
    call(taught.predict, x=given["x"], reset=given["reset"])
    moved = call(taught.get)
    call(taught.set, **clean)
    given["x"][0, 1] = np.nan
    given["reset"][0, 0] = anew
    function = getattr(taught, what)
    call(function, **{name: given[name] for name in given if what == "learn" or name in ("x", "reset")})
    after = call(taught.get)
    for name in of("carry", after):
        np.testing.assert_array_equal(after[name][0], 0 * clean[name][0] if anew else clean[name][0])
        np.testing.assert_array_equal(after[name][1], moved[name][1])
        assert np.abs(clean[name]).max() > 0
    assert after["count_held"] == 1
    assert same(of("weight", clean), after)


def test_frozen_it_only_predicts(taught):
    before = call(taught.get)
    assert call(taught.freeze)["frozen"]
    out = call(taught.learn, **lesson())
    after = call(taught.get)
    assert not out["applied"]
    assert np.isfinite(out["loss"])
    assert same(of("weight", before), after)
    assert same(of("optimizer", before), after)
    assert not same(of("carry", before), after)
    assert (after["count_updates"], after["count_skipped"]) == (1, 0)
    assert not call(taught.thaw)["frozen"]
    assert call(taught.learn, **lesson())["applied"]
    assert not same(of("weight", before), call(taught.get))


def test_rollback_puts_weights_and_optimizer_back(taught, made):
    _, exported, _ = made
    call(taught.rollback)
    assert same(of("weight", exported), call(taught.get))
    call(taught.learn, **lesson())
    call(taught.snapshot)
    kept = call(taught.get)
    call(taught.learn, **lesson(4))
    changed = call(taught.get)
    assert not same(of("weight", kept), changed)
    call(taught.rollback)
    back = call(taught.get)
    assert same({**of("weight", kept), **of("optimizer", kept)}, back)
    assert same({**of("carry", changed), **of("count", changed)}, back)


def test_reset_and_start(taught):
    before = call(taught.get)
    call(taught.reset, streams=[False, True])
    after = call(taught.get)
    for name, value in of("carry", after).items():
        np.testing.assert_array_equal(value[0], before[name][0])
        assert not value[1].any()
    assert call(taught.info) == {"steps": T, "updates": 1, "skipped": 0, "held": 0, "frozen": False}
    call(taught.start, batch_size=3)
    assert {value.shape[0] for value in of("carry", call(taught.get)).values()} == {3}
    assert call(taught.learn, **lesson(rows=3))["y"].shape == (3, T, W)


NAN = np.full((D, 2 * N), np.nan, "float32")
WRONG_INPUTS = [
    ("learn", {"x": np.zeros((B, T, D + 1), "float32")}, r"Shape of tensor x \[2,3,5\] is not .* \[\?,\?,4\]"),
    ("learn", {"x": np.zeros((3, T, D), "float32")}, "x must have as many rows as there are streams"),
    ("learn", {"targets": np.zeros((B, T, 1), "float32")}, r"Shape of tensor targets \[2,3,1\] is not .* \[\?,\?,2\]"),
    ("learn", {"targets": np.zeros((B, 1, W), "float32")}, r"targets must have the \[batch, time\] of the prediction"),
    ("learn", {"sample_weight": np.ones((1, T), "float32")}, "sample_weight must have as many rows"),
    ("learn", {"sample_weight": np.ones((B, 1), "float32")}, r"sample_weight must have the \[batch, time\]"),
    ("learn", {"reset": np.zeros((B, T - 1), bool)}, r"reset of elstm must have the \[batch, time\] of sequences"),
    ("learn", {"targets": np.zeros((B, T, W))}, "expected to be a float tensor but is a double tensor"),
    ("learn", {"targets": None}, "missing a required argument: 'targets'"),
    ("predict", {"x": np.zeros((B, D), "float32")}, r"Shape of tensor x \[2,4\] is not compatible"),
    ("reset", {"streams": [True]}, "streams must have one flag a stream"),
    ("start", {"batch_size": 0}, "batch_size must be at least 1"),
    ("set", {"weight_model_elstm_kernel": NAN}, "weight_model_elstm_kernel must be finite"),
    ("set", {"weight_model_elstm_kernel": NAN[:1]}, r"Shape of tensor weight_model_elstm_kernel \[1,10\] is not"),
    ("set", {"carry_elstm_S": np.zeros((3, D, 2, N, 1), "float32")}, "carry_elstm_S must have as many rows as"),
]


@pytest.mark.parametrize(("what", "wrong", "message"), WRONG_INPUTS)
def test_wrong_inputs_change_nothing(taught, what, wrong, message):
    before = call(taught.get)
    inputs = lesson(5)
    sound = {"learn": inputs, "predict": {name: inputs[name] for name in ("x", "reset")}, "set": before}.get(what, {})
    if LEGACY:  # a model's name is not in its weights' names there
        wrong = {name.replace("model_", ""): value for name, value in wrong.items()}
        message = message.replace("model_", "")
    given = {name: value for name, value in {**sound, **wrong}.items() if value is not None}
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError), match=message):
        call(getattr(taught, what), **given)
    assert same(before, call(taught.get))


def test_a_learner_of_a_fixed_batch_has_no_other(made):
    module = learner(model_of(), optimizer="sgd", loss="mse", batch_size=B, steps=1)
    assert module.start is None
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Shape of tensor .* \[3,1.* is not .* \[2,1"):
        call(module.learn, **lesson(rows=3, steps=1))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Shape of tensor .* \[2,3.* is not .* \[2,1"):
        call(module.learn, **lesson())
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Shape of tensor streams \[3\] is not .* \[2\]"):
        call(module.reset, streams=[True] * 3)


def own_reset():
    """A reset of the model's own, a carry among its layers' outputs, integers as targets, Dropout, a penalty."""
    x, reset = keras.Input((None, D), name="x"), keras.Input((None,), dtype="bool", name="reset")
    y, *_ = layers.RTU(N, return_sequences=True, return_state=True, name="rtu", kernel_regularizer="l2")(x, reset=reset)
    y = keras.layers.Dropout(0.5, name="dropout")(y)
    return keras.Model({"x": x, "reset": reset}, keras.layers.Dense(W, activation="softmax", name="y")(y), name="model")


def test_another_wiring():
    model = own_reset()
    loss = keras.losses.SparseCategoricalCrossentropy()
    spec = tf.TensorSpec([None, None], tf.int32)
    module = learner(model, optimizer="adam", loss=loss, targets=spec, batch_size=B)
    given = {**lesson(), "targets": np.zeros((B, T), "int32")}
    start = call(module.get)
    first = [call(module.learn, **given) for _ in range(3)]
    call(module.set, **start)
    again = [call(module.learn, **given) for _ in range(3)]
    for one, other in zip(first, again, strict=True):
        assert same(one, other) or LEGACY  # in Keras 3 Dropout's random numbers are part of the state
    assert first[1]["applied"]
    penalty = 0.01 * np.sum(np.square(next(v for n, v in start.items() if is_kernel(n))))
    picked = -np.log(first[0]["y"][..., 0])
    np.testing.assert_allclose(first[0]["loss"], picked.mean() + penalty, rtol=1e-5)


def is_kernel(name):
    return name.startswith("weight_") and name.endswith("rtu_kernel")


@(pytest.mark.full if LEGACY else lambda test: test)
def test_under_xla(made):
    module, state, _ = made
    optimizer = keras.optimizers.SGD(RATE, momentum=0.9)
    compiled = learner(model_of(), optimizer=optimizer, loss="mse", batch_size=B, steps=1, jit_compile=True)
    call(module.set, **state)
    for seed in range(5):
        given = lesson(seed, steps=1)
        want, got = call(module.learn, **given), call(compiled.learn, **given)
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
        np.testing.assert_allclose(got["y"], want["y"], atol=1e-5)
    given["x"][0] = np.nan
    before = call(compiled.get)
    assert not call(compiled.learn, **given)["applied"]
    assert same(of("weight", before), call(compiled.get))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Shape of tensor targets \[2,3,2\] is not .* \[2,1,2\]"):
        call(compiled.learn, **{**given, "targets": np.zeros((B, T, W), "float32")})


def two_outputs():
    x = keras.Input((None, D))
    return keras.Model(x, [layers.ELSTM(N, name="a")(x), layers.ELSTM(N, name="b")(x)], name="two")


def called_targets():
    x = keras.Input((None, D), name="targets")
    return keras.Model(x, layers.ELSTM(N)(x))


def own_state():
    x, state = keras.Input((None, D), name="x"), keras.Input((N, 1), name="state")
    return keras.Model([x, state], layers.ELSTM(N)(x, initial_state=state), name="own")


def frozen():
    model = model_of()
    model.trainable = False
    return model


class Unused(keras.layers.Dense):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (lambda: model_of(keras.layers.LSTM(3, return_sequences=True, name="lstm")), {}, r"model: lstm \(LSTM\) is a"),
        (lambda: model_of(keras.layers.BatchNormalization(name="bn")), {}, "bn/moving_mean, .* while the model runs"),
        (lambda: model_of(Unused(N, name="unused")), {}, "no gradient of .*unused/kernel"),
        (two_outputs, {}, "model must have one output, two has"),
        (called_targets, {}, "model: its input targets is called as one of `learn`'s own"),
        (own_state, {}, "model: own gives each RTRL layer its initial_state"),
        (frozen, {}, "model must have trainable weights, model has none"),
        (model_of, {"loss": lambda y, p: tf.reduce_mean(y - p)}, "loss must give one value a sample"),
        (model_of, {"loss": keras.losses.MeanSquaredError(reduction="none")}, r"loss must reduce to one number"),
        (
            model_of,
            {"jit_compile": True, "steps": 1},
            "jit_compile must be False unless batch_size and steps are given",
        ),
        (model_of, {"targets": tf.TensorSpec([3])}, r"targets must begin with the sizes \(None, None\)"),
    ],
)
def test_what_it_refuses(model, more, message):
    with pytest.raises(ValueError, match=message):
        learner(model(), **{"optimizer": "sgd", "loss": "mse", **more})
