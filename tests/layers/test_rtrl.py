"""What is particular to the RTRL layer; what all layers do as Keras' own is in tests/conformance/layers."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import _checks, native
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.cells import ELSTMCell, Parameter, RTRLCell, RTUCell
from keras_rtrl.layers import ELSTM, LRU, RTRL, RTU, RTRLStack

B, T, D, N = 2, 6, 4, 3
LAYERS = {
    "elstm": lambda **kw: ELSTM(N, **kw),
    "lru": lambda **kw: LRU(N, **kw),
    "rtu": lambda **kw: RTU(N, **kw),
    "rtu-nonlinear": lambda **kw: RTU(N, recurrence="nonlinear", activation="tanh", **kw),
    "cell": lambda **kw: RTRL(ELSTMCell(N), **kw),
}
everything = {"return_sequences": True, "return_state": True}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


@pytest.fixture
def rng():
    keras.utils.set_random_seed(1)
    return np.random.default_rng(1)


def inputs(rng, batch=B, steps=T):
    return rng.normal(size=(batch, steps, D)).astype("float64")


def resets(*where):
    reset = np.zeros((B, T), bool)
    for b, t in where:
        reset[b, t] = True
    return reset


def last_chunk_gradients(layer, x, reset, cut, carry):
    """Gradients of a loss on the steps from `cut` on, the steps before being a call of their own."""
    _, *carry = layer(x[:, :cut], initial_state=carry, reset=reset[:, :cut])
    with tf.GradientTape() as tape:
        y, *_ = layer(x[:, cut:], initial_state=carry, reset=reset[:, cut:])
        loss = tf.reduce_sum(tf.sin(3 * y))
    return tape.gradient(loss, variables(layer))


def variables(layer):
    return [w if LEGACY else w.value for w in layer.trainable_weights]


def test_gradient_of_last_chunk_is_bptt_through_the_history(make, rng):
    layer, x, reset = make(dtype="float64", **everything), inputs(rng), resets((1, 2))
    layer.build(x.shape)
    zero = layer.get_initial_state(B, traces=True)
    got = last_chunk_gradients(layer, x, reset, 4, zero)
    with tf.GradientTape() as tape:  # one call: no history outside it, so this is BPTT
        y, _ = layer(x, initial_state=zero[0], reset=reset)
        loss = tf.reduce_sum(tf.sin(3 * y[:, 4:]))
    want = tape.gradient(loss, variables(layer))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    layer.gradient = "tbptt"
    truncated = last_chunk_gradients(layer, x, reset, 4, zero)
    assert np.linalg.norm(truncated[0] - want[0]) > 1e-2 * np.linalg.norm(want[0])


def test_fit_compiled_by_xla(rng):
    layer = RTU(N, stateful=True, return_sequences=True)
    model = keras.Sequential([keras.Input((T, D), batch_size=B), layer, keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=True)
    x, y = inputs(rng).astype("float32"), np.ones((B, T, 1), "float32")
    history = model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(20), verbose=0, epochs=2).history["loss"]
    assert history[1] < history[0]


def test_held_output_is_the_lstms_convention(rng):
    x = inputs(rng).astype("float32")
    mask = np.array([[0, 1, 0, 1, 1, 0]] * B, bool)
    for zero in (False, True):
        ours = np.array(ELSTM(N, return_sequences=True, zero_output_for_mask=zero)(x, mask=mask))
        lstm = np.array(
            keras.layers.LSTM(N, return_sequences=True, zero_output_for_mask=zero)(x, mask=tf.constant(mask))
        )
        for t in range(1, T):
            assert (ours[:, t] == ours[:, t - 1]).all() == (lstm[:, t] == lstm[:, t - 1]).all()
        np.testing.assert_array_equal(ours[:, 0], lstm[:, 0])  # zeros before the first real step


def test_automatic_mask_survives_a_reset_argument(rng):
    x = inputs(rng).astype("float32")
    x[:, 3:] = 0
    layer = ELSTM(N, return_sequences=True)
    y = layer(keras.layers.Masking()(x), reset=resets((0, 1)))
    np.testing.assert_array_equal(y[:, 3], y[:, 2])
    np.testing.assert_array_equal(y[:, 5], y[:, 2])


def test_reset_on_a_masked_step_still_resets(rng):
    x, layer = inputs(rng), ELSTM(N, dtype="float64", **everything)
    mask = np.ones((B, T), bool)
    mask[:, 2] = False
    _, *masked = layer(x, mask=mask, reset=resets((0, 2), (1, 2)))
    _, *fresh = layer(x[:, 3:])
    for a, b in zip(masked, fresh, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_config_round_trip(make):
    layer = make(
        gradient="tbptt",
        return_sequences=True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=keras.regularizers.L2(0.1),
        recurrent_constraint="max_norm",
    )
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again.build((None, None, D))
    assert again.losses  # one for each matrix of the role


def test_roles_of_initialisers_and_regularisers(rng):
    layer = ELSTM(
        N, kernel_initializer="zeros", recurrent_initializer="ones", bias_regularizer=keras.regularizers.L1(1.0)
    )
    layer.build((None, None, D))
    values = {w.name.split("/")[-1].split(":")[0]: np.array(w) for w in layer.weights}
    for name, value in {"kernel": 0, "output_kernel": 0, "w_f": 1, "output_recurrent_kernel": 1}.items():
        assert (values[name] == value).all(), name
    biases = sum(np.abs(values[name]).sum() for name in ("b_f", "b_z", "output_bias"))
    np.testing.assert_allclose(sum(float(loss) for loss in layer.losses), biases, rtol=1e-6)


def test_one_initialiser_draws_anew_for_each_weight():
    layer = ELSTM(D, kernel_initializer="glorot_uniform", recurrent_initializer=keras.initializers.RandomNormal())
    layer.build((None, None, D))
    assert np.abs(np.array(layer.w_f) - np.array(layer.w_z)).min() > 0


def test_forget_bias_moves_the_initial_bias():
    keras.utils.set_random_seed(0)
    layer = ELSTM(1000, forget_bias=5.0)
    layer.build((None, None, D))
    b_f = next(np.array(w) for w in layer.weights if "b_f" in w.name)
    assert abs(b_f.mean() - 5) < 0.02
    assert abs(b_f.std() - 0.1) < 0.01


@pytest.mark.parametrize("cell", [ELSTMCell(N), RTUCell(N)])
@pytest.mark.parametrize("wrap", ["RNN", "StackedRNNCells"])
def test_keras_rnn_refuses_cells_and_names_the_layer(cell, wrap):
    with pytest.raises(TypeError, match=r"RTRL\("):
        keras.layers.RNN(cell if wrap == "RNN" else keras.layers.StackedRNNCells([cell]))(X)


X = np.zeros((B, T, D), "float32")
BAD_CALLS = {
    "rank": (dict(sequences=X[0]), ValueError, "sequences must have shape"),
    "integer": (dict(sequences=X.astype("int32")), TypeError, "sequences must be floating, got int32"),
    "width": (dict(sequences=X[..., :2]), ValueError, "4 features as this layer was built for, got 2"),
    "no steps": (dict(sequences=X[:, :0]), ValueError, "time = 0"),
    "two states": (dict(sequences=X, initial_state=[X, X]), ValueError, "initial_state must be .* got 2 tensors"),
    "state shape": (dict(sequences=X, initial_state=X), ValueError, "initial_state: state must have shape"),
    "state batch": (dict(sequences=X, initial_state=np.zeros((B + 1, N, 1), "float32")), ValueError, "initial_state"),
    "no tensor": (dict(sequences=X, initial_state="zeros"), TypeError, "initial_state must .* got str"),
    "reset shape": (dict(sequences=X, reset=np.zeros((B, 3), bool)), ValueError, "reset must have shape"),
    "mask shape": (dict(sequences=X, mask=np.zeros((B,), bool)), ValueError, "mask must have shape"),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_bad_calls_get_one_clear_error(bad):
    arguments, error, message = BAD_CALLS[bad]
    layer = ELSTM(N)
    layer.build((None, None, D))
    with pytest.raises(error, match=message):
        layer(**arguments)


@pytest.fixture(scope="module", params=["native", "tf"])
def free(request):
    """A function of free batch and number of steps: its shapes are known when it runs."""
    layer = ELSTM(N, return_sequences=True, implementation=request.param, name="free")
    if request.param == "native" and not native.choose("auto", layer.cell, "float32"):
        pytest.skip("the native op is not built")
    layer.build((None, None, D))
    specs = [((None, None, D), "float32"), ((None, None), "bool"), ((None, None), "float32"), ((None, N, 1), "float32")]
    specs = [tf.TensorSpec(*spec) for spec in specs]
    function = tf.function(
        lambda x, reset, mask, state: layer(x, reset=reset, mask=mask, initial_state=state), input_signature=specs
    )

    def call(x=(B, T, D), reset=(B, T), mask=(B, T), state=(B, N, 1), value=1.0):
        mask = tf.fill(mask, value)
        return function(tf.zeros(x), tf.zeros(reset, tf.bool), mask, tf.zeros(state))

    return call


@pytest.mark.parametrize("rows", [0, 1, B + 1])
@pytest.mark.parametrize("name", ["state", "reset", "mask"])
def test_rows_known_late_must_be_those_of_sequences(free, name, rows):
    shapes = {"state": (rows, N, 1), "reset": (rows, T), "mask": (rows, T)}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name} .*of free must have the .*batch.* of sequences"):
        free(**{name: shapes[name]})
    assert free().shape == (B, T, N)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(reset=(B, T + 2)), r"reset of free must have the \[batch, time\] of sequences"),
        (dict(reset=(T, B)), r"reset of free must have the \[batch, time\] of sequences"),
        (dict(mask=(B, T - 1)), r"mask of free must have the \[batch, time\] of sequences"),
        (dict(x=(B, 0, D), reset=(B, 0), mask=(B, 0)), "sequences of free must have at least one step, got time = 0"),
        (dict(value=float("nan")), "mask of free must be boolean, or 0 and 1 alone"),
        (dict(value=0.5), "mask of free must be boolean, or 0 and 1 alone"),
    ],
)
def test_shapes_and_values_known_late(free, given, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        free(**given)


@pytest.mark.parametrize("what", ["sequences", "initial_state", "reset", "mask"])
@pytest.mark.parametrize("built", [False, True])
def test_tensors_of_unknown_rank(what, built):
    layer = ELSTM(N)
    if built:
        layer.build((None, None, D))
    dtype = tf.bool if what in ("reset", "mask") else tf.float32
    function = tf.function(lambda given: layer(**{"sequences": X, what: given}), [tf.TensorSpec(None, dtype)])
    with pytest.raises(ValueError, match=f"{what}.* must have a known number of dimensions"):
        function(resets() if dtype == tf.bool else X)


@pytest.mark.parametrize("what", ["reset", "mask"])
def test_flags_of_other_dtypes(what, rng):
    layer, x = ELSTM(N, return_sequences=True), inputs(rng).astype("float32")
    flags = resets((0, 2), (1, 3))
    want = layer(x, **{what: flags})
    for dtype in ("float32", "int64", "uint8"):
        np.testing.assert_array_equal(layer(x, **{what: flags.astype(dtype)}), want)
    for wrong in (np.nan, 0.5, 2, -1, np.inf):
        with pytest.raises(ValueError, match=f"{what} must be boolean, or 0 and 1 alone, got array"):
            layer(x, **{what: np.full((B, T), wrong)})


RAGGED = tf.ragged.constant([[[1.0] * D] * T, [[1.0] * D]], ragged_rank=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(sequences=RAGGED), "sequences must be dense, got a ragged tensor"),
        (dict(sequences=tf.sparse.from_dense(np.ones((B, T, D)))), "sequences must be dense, got a sparse tensor"),
        (dict(reset=tf.ragged.constant([[True], [True] * T])), "reset must be dense, got a ragged tensor"),
        (dict(mask=tf.sparse.from_dense(np.ones((B, T)))), "mask must be dense, got a sparse tensor"),
        (dict(sequences=None), "sequences must be a tensor or an array, got NoneType"),
        (dict(sequences=[1.0, 2.0]), "sequences must be a tensor or an array, got list"),
        (dict(initial_state=[np.zeros((B, N, 1)), None, None]), "initial_state: S must be a tensor .*, got NoneType"),
        (dict(initial_state=np.zeros((B, N, 1), complex)), "initial_state: state must be numbers, got complex128"),
        (dict(initial_state=np.zeros((B, N, 1), bool)), "initial_state: state must be numbers, got bool"),
    ],
)
def test_what_is_no_dense_tensor(given, message):
    for layer in (ELSTM(N), RTRLStack([ELSTM(N)])):
        with pytest.raises(TypeError, match=message.replace(": S ", ": S(_1)? ").replace(": state ", ": state(_1)? ")):
            layer(**{"sequences": X, **given})


@pytest.mark.parametrize("kind", ["ragged", "sparse"])
def test_ragged_and_sparse_inputs_of_models(kind):
    with pytest.raises(TypeError, match=f"sequences must be dense, got a {kind} tensor"):
        ELSTM(N)(keras.Input((None, D), **{kind: True}))


@pytest.mark.skipif(not LEGACY, reason="Keras 3 hands no mask on from inside TimeDistributed, to its own LSTM neither")
@pytest.mark.parametrize("how", ["called", "predicted"])
def test_masks_of_inner_steps(how, rng):
    """TimeDistributed hands on the mask of each outer step."""
    x = inputs(rng, batch=3 * B).reshape(B, 3, T, D).astype("float32")
    x[:, 1, 3:] = 0.0
    layer = ELSTM(N)
    given = keras.Input((3, T, D))
    y = keras.layers.TimeDistributed(keras.layers.Masking())(given)
    model = keras.Model(given, keras.layers.TimeDistributed(layer)(y))
    got = model(x) if how == "called" else model.predict(x, verbose=0)
    want = tf.stack([layer(keras.layers.Masking()(x[:, k])) for k in range(3)], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_activity_regularizer_penalises_the_output_alone(rng):
    x = inputs(rng).astype("float32")
    for make in (lambda **kw: ELSTM(N, **kw), lambda **kw: RTRLStack([ELSTM(N)], **kw)):
        layer = make(activity_regularizer=keras.regularizers.L2(1.0))
        y = layer(x)
        plain = keras.layers.Activation("linear", activity_regularizer=keras.regularizers.L2(1.0))
        plain(y)  # Keras before 3.13 does not divide by the batch
        assert float(plain.losses[0]) > 0
        np.testing.assert_allclose(*([float(loss) for loss in of.losses] for of in (layer, plain)), rtol=1e-5)
        assert type(layer).from_config(layer.get_config()).activity_regularizer is not None
        with pytest.raises(ValueError, match="activity_regularizer must be None with return_state=True"):
            make(activity_regularizer="l2", return_state=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELSTM(2**63), r"units must be a whole number .* below 2\*\*63, got 9223372036854775808"),
        (lambda: ELSTM(2**50, name="big")(X), r"big: units=1125899906842624 over 4 features .* [\d,]+\.\d GiB"),
        (lambda: RTRLStack([ELSTM(2**50, name="big")])(X), "big: units=1125899906842624 over 4 features .* GiB"),
        (lambda: ELSTM(N).get_initial_state(2**50), "batch_size: a carry of 1125899906842624 streams .* GiB"),
        (lambda: ELSTM(N).get_initial_state(tf.constant(-1)), "batch_size must be a whole number .*, got -1"),
        (lambda: tf.function(ELSTM(N).get_initial_state)(tf.constant(1.5)), "batch_size must be one whole number"),
    ],
)
def test_sizes_that_no_machine_holds(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_carry_larger_than_the_memory_is_refused(monkeypatch):
    stateful, returned = ELSTM(N, stateful=True, name="big"), ELSTM(N, return_state=True, name="big")
    for layer in (stateful, returned):
        layer.build((None, None, D))
    monkeypatch.setattr(_checks, "machine_memory", lambda: 100)
    for layer in (stateful, returned):
        with pytest.raises(ValueError, match=f"big: a carry of {B} streams .* GiB"):
            layer(X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: keras.layers.Bidirectional(RTRLStack([ELSTM(3)])), ValueError, "forward in time"),
        (lambda: ELSTM(3, dtype="float64", trace_dtype="float32"), ValueError, "trace_dtype must not be narrower"),
        (lambda: keras.layers.Bidirectional(ELSTM(3)), ValueError, "forward in time"),
        (lambda: ELSTM(3, recurrent_initializer="orthogonal")(X), ValueError, "recurrent_initializer cannot make w_f"),
        (lambda: ELSTM(3, stateful=True)(X, initial_state=np.zeros((B, 3, 1))), ValueError, "must be left out"),
        (lambda: ELSTM(3).get_initial_state(2, traces=True), ValueError, "needs a built layer"),
    ],
)
def test_arguments_that_do_not_fit_together(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_stateful_needs_one_known_batch(rng):
    layer = ELSTM(N, stateful=True)
    layer(X)
    with pytest.raises(ValueError, match=r"batch of 1.* 2 streams"):
        layer(X[:1])
    other = ELSTM(N, stateful=True)
    unknown = tf.function(other, input_signature=[tf.TensorSpec((None, T, D))])
    with pytest.raises(ValueError, match="known batch size"):
        unknown(X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ELSTM(5)(keras.Input((6, 3)), initial_state=keras.Input((7, 1))), ValueError, "state must have shape"),
        (lambda: ELSTM(5)(keras.Input((6, 3), dtype="int32")), TypeError, "must be floating, got int32"),
        (lambda: ELSTM(5, stateful=True)(keras.Input((6, 3))), ValueError, "known batch size"),
    ],
)
def test_functional_models_are_checked_when_they_are_built(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Named(RTRLCell):
    """A cell with one per-unit parameter, declared as asked."""

    gates = ("u",)

    def __init__(self, parameter, width=3):
        super().__init__(3)
        self.parameter, self.width = parameter, width

    def unit_parameters(self):
        return (self.parameter,)

    def phi(self, state, u, c):
        return (0.5 * state[0] + u["u"],)


class Gates(RTRLCell):
    """A cell whose gates are declared as asked."""

    def __init__(self, gates):
        super().__init__(3)
        self.gates = gates


def parameter(name="b", role="bias", shape=(3,)):
    return Parameter(name, role, shape, tf.zeros)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RTRL(Named(parameter(role="gain"))), "role of 'b' must be one of"),
        (lambda: RTRL(Named(parameter(shape=(3, 1)))), r"'b' must have shape \(3,\)"),
        (lambda: RTRL(Named(parameter(name="kernel"))), "different names, and none 'kernel'"),
        (lambda: RTRL(Named(parameter(name="gradient")))(X), "cannot be called 'gradient'"),
        (lambda: RTRL(RTRLCell(3)), "gates must be a tuple of different names"),
        (lambda: RTRL(Gates(("u", "u"))), "gates must be a tuple of different names"),
        (lambda: RTRL(Gates(["u"])), "gates must be a tuple of different names"),
        (lambda: RTRL(Gates(("u", 1))), "gates must be a tuple of different names"),
    ],
)
def test_cells_that_break_the_contract_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_forget_bias_is_added_to_a_given_initialiser():
    layer = ELSTM(3, forget_bias=5.0, bias_initializer="zeros")
    layer.build((None, None, D))
    np.testing.assert_array_equal(np.array(layer.b_f), 5.0)
    np.testing.assert_array_equal(np.array(layer.b_z), 0.0)


def test_second_order_gradient_is_refused(rng):
    layer = ELSTM(N)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(layer(X + 1) ** 2)
        gradient = inner.gradient(loss, variables(layer)[0])
        norm = tf.reduce_sum(gradient**2)
    with pytest.raises(TypeError, match="cannot itself be differentiated"):
        outer.gradient(norm, variables(layer)[0])


@pytest.mark.parametrize("traces", [False, True])
def test_functions_under_nested_and_persistent_tapes(traces):
    layer = ELSTM(N, return_state=traces)
    layer.build((None, None, D))

    @tf.function
    def loss(x):
        y = layer(x)
        return tf.reduce_sum((y[0] if traces else y) ** 2)

    with tf.GradientTape() as tape:
        value = loss(X + 1)
    expected = tape.gradient(value, variables(layer)[0])
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            value = loss(X + 1)
        np.testing.assert_array_equal(inner.gradient(value, variables(layer)[0]), expected)
    for _ in range(2):
        np.testing.assert_array_equal(outer.gradient(value, variables(layer)[0]), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_second_order_gradient_in_a_function_gives_no_number(jit_compile):
    layer = ELSTM(N)
    layer.build((None, None, D))

    @tf.function(jit_compile=jit_compile)
    def second_order(x):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(layer(x) ** 2)
            norm = tf.reduce_sum(inner.gradient(loss, variables(layer)[0]) ** 2)
        return outer.gradient(norm, variables(layer)[0])

    if jit_compile:  # XLA drops assertions
        assert np.isnan(second_order(X + 1)).all()
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="cannot itself be differentiated"):
            second_order(X + 1)


def test_output_of_one_step_and_recurrent_weights(make, rng):
    layer, x = make(**everything), inputs(rng).astype("float32")
    y, state, _, _ = layer(x)
    np.testing.assert_allclose(layer.read_out(x[:, -1], state), y[:, -1], rtol=1e-6)
    last = make(return_state=True)
    for steps in (T, 1):
        y, state, _, _ = last(x[:, :steps])
        np.testing.assert_allclose(last.read_out(x[:, steps - 1], state), y, rtol=1e-6)
    weights = layer.recurrent_weights()
    assert list(weights) == ["kernel", *layer.cell.unit_names]
    assert weights["kernel"] is layer.kernel
