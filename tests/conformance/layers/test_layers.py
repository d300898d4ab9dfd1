"""What Keras' own layers do, done by every layer of the list, under Keras 3 and under tf-keras."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import tensorflow as tf

import keras_rtrl.layers
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.data import stream_chunks

B, T, D = 2, 6, 4


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(1)


def inputs(steps=T, streams=B, dtype="float32"):
    return np.random.default_rng(1).normal(size=(streams, steps, D)).astype(dtype)


def resets(*where):
    reset = np.zeros((B, T), bool)
    for b, t in where:
        reset[b, t] = True
    return reset


def zero_carry(case, streams=B, dtype="float32"):
    return [tf.zeros((streams, *shape), dtype) for shape in case.carry]


def some_carry(case, streams=B, dtype="float32"):
    rng = np.random.default_rng(2)
    return [tf.constant(rng.normal(0, 0.3, (streams, *shape)), dtype) for shape in case.carry]


def variables(layer):
    return [w if LEGACY else w.value for w in layer.trainable_weights]


def loss_of(y):
    return tf.reduce_sum(tf.sin(3 * y))


def gradients(layer, x, **call):
    """Gradients of a loss on the outputs of a call, and the carry that it returns."""
    with tf.GradientTape() as tape:
        y, *carry = tf.nest.flatten(layer(x, **call))
        loss = loss_of(y)
    return tape.gradient(loss, variables(layer)), carry


def twin(layer, case, **options):
    """Another layer of the same weights."""
    other = case.make(**options)
    other.build((None, None, D))
    other.set_weights(layer.get_weights())
    return other


def close(got, want, rtol=1e-5, atol=1e-6):
    for a, b in zip(got, want, strict=True):
        largest = np.max(np.abs(b), initial=1.0)  # small sums of large terms have the large terms' rounding
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * largest)


def far(got, want):
    """Whether two lists of arrays differ by more than rounding."""
    return any(np.abs(np.array(a) - np.array(b)).max() > 1e-3 for a, b in zip(got, want, strict=True))


everything = {"return_sequences": True, "return_state": True}


def test_keras_own_layer_test(case):
    class Made:
        def __init__(self):
            pass

        def __new__(cls, **options):
            return case.make(return_sequences=True, **options)

    if LEGACY:
        from tf_keras.src.testing_infra import test_utils

        test_utils.layer_test(
            Made, input_shape=(B, T, D), expected_output_shape=(None, T, case.width), supports_masking=True
        )
    else:
        from keras.src import testing

        testing.TestCase().run_layer_test(
            Made, {}, input_shape=(B, T, D), expected_output_shape=(B, T, case.width), supports_masking=True
        )


def test_dtypes(case):
    for policy in ("mixed_float16", "mixed_bfloat16", "float64", "float32"):
        layer, x = case.make(dtype=policy, **everything), inputs()
        for _ in range(2):
            y, *carry = layer(x)
        y, *carry = layer(x, initial_state=carry)
        assert y.dtype == policy.replace("mixed_", "")
        wide = "float64" if policy == "float64" else "float32"
        assert {c.dtype.name for c in carry} == {wide}
        assert {tf.as_dtype(w.dtype).name for w in layer.weights} == {wide}


def test_return_state_and_initial_state(case):
    layer, x = case.make(**everything), inputs()
    y, *carry = layer(x)
    assert y.shape == (B, T, case.width)
    assert [tuple(c.shape[1:]) for c in carry] == list(case.carry)
    for got, want in zip(layer.compute_output_shape((B, T, D)), (y, *carry), strict=True):
        assert tuple(got) == tuple(want.shape)
    assert case.make()(x).shape == (B, case.width)
    # In two calls as in one; the state alone makes no traces, and the state alone comes back.
    first, *carry_between = layer(x[:, :2])
    second, *carry_after = layer(x[:, 2:], initial_state=carry_between)
    close([tf.concat([first, second], 1), *carry_after], [y, *carry])
    states = carry_between[::3]
    second, *states_after = layer(x[:, 2:], initial_state=states if len(states) > 1 else states[0])
    close([second, *states_after], [y[:, 2:], *carry[::3]])


def test_functional_models_carry_it(case):
    x = keras.Input((None, D))
    layer = case.make(**everything)
    y, *carry = layer(x)
    again = layer(x, initial_state=carry)
    model = keras.Model(x, [y, *carry, *again])
    assert [tuple(o.shape[1:]) for o in model.outputs[1 : len(carry) + 1]] == list(case.carry)
    value = inputs()
    y, *carry = layer(value)
    close(model(value), [y, *carry, *layer(value, initial_state=carry)])


class Subclassed(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x)


def test_functional_sequential_and_subclassed_models(case):
    layer = case.make(return_sequences=True)
    x = keras.Input((None, D))
    models = [keras.Model(x, layer(x)), keras.Sequential([keras.Input((None, D)), layer]), Subclassed(layer)]
    for streams, steps in ((B, T), (3, 2)):
        value = inputs(steps, streams)
        for model in models:
            np.testing.assert_allclose(model(value), layer(value), rtol=1e-5, atol=1e-6)
    assert all(len(model.trainable_weights) == len(layer.trainable_weights) for model in models)


def test_unknown_batch_and_time(case):
    layer = case.make(**everything)
    layer.build((None, None, D))

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, D)), *(tf.TensorSpec((None, *shape)) for shape in case.carry)]
    )
    def unknown(x, *carry):
        return gradients(layer, x, initial_state=list(carry))

    for streams, steps in ((B, T), (3, 1)):
        x, carry = inputs(steps, streams), some_carry(case, streams)
        got, carry_got = unknown(x, *carry)
        want, carry_want = gradients(layer, x, initial_state=carry)
        close([*got, *carry_got], [*want, *carry_want])


def test_jit_compile(case):
    layer, x, carry = case.make(**everything), inputs(), some_carry(case)
    layer.build((None, None, D))

    @tf.function(jit_compile=True)
    def compiled(x, reset, *carry):
        return gradients(layer, x, reset=reset, initial_state=list(carry))

    got, carry_got = compiled(x, resets((1, 2)), *carry)
    want, carry_want = gradients(layer, x, reset=resets((1, 2)), initial_state=carry)
    close([*got, *carry_got], [*want, *carry_want], rtol=1e-4, atol=1e-5)


def test_reset(case):
    layer, x = case.make(dtype="float64", **everything), inputs(dtype="float64")
    carry = some_carry(case, dtype="float64")
    y, *after = layer(x, initial_state=carry, reset=resets((0, 2)))
    fresh, *after_fresh = layer(x[:, 2:], initial_state=zero_carry(case, dtype="float64"))
    through, *after_through = layer(x, initial_state=carry)
    close([y[0, 2:], *(c[0] for c in after)], [fresh[0], *(c[0] for c in after_fresh)], rtol=1e-9)
    close([y[0, :2], y[1], *(c[1] for c in after)], [through[0, :2], through[1], *(c[1] for c in after_through)], 1e-9)
    assert far([fresh[0]], [through[0, 2:]])


def test_built_twice_it_keeps_its_weights(case):
    layer = case.make()
    layer.build((B, None, D))
    before = layer.get_weights()
    layer.build((None, None, D))
    assert len(layer.get_weights()) == len(before) > 0
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=rf"was built for {D} features and gets {D + 1}"):
        layer.build((None, None, D + 1))


def test_stateful_equals_explicit_carry(case):
    stateful = case.make(stateful=True, dtype="float64", return_sequences=True)
    x, reset = inputs(dtype="float64"), resets((0, 1))
    stateful.build((B, None, D))
    explicit = twin(stateful, case, dtype="float64", **everything)
    carry = zero_carry(case, dtype="float64")
    for lo, hi in ((0, 2), (2, 5), (5, 6)):
        got, _ = gradients(stateful, x[:, lo:hi], reset=reset[:, lo:hi])
        want, carry = gradients(explicit, x[:, lo:hi], reset=reset[:, lo:hi], initial_state=carry)
        close(got, want, rtol=1e-9)
    forgetful, _ = gradients(explicit, x[:, 5:])
    assert far(got, forgetful)
    stateful.reset_state()
    got, _ = gradients(stateful, x[:, 5:])
    close(got, forgetful, rtol=1e-9)


def test_inference_leaves_the_training_carry_alone(case):
    layer, x = case.make(stateful=True, return_sequences=True), inputs()
    layer(x)
    expected = layer(x)
    layer.reset_state()
    layer(x, training=True)
    layer(3 * x, training=False)
    first = layer(3 * x, training=False)
    close([layer(x)], [expected])
    layer.reset_state()
    assert far([layer(3 * x, training=False)], [first])  # the inference state was carried, and is zeroed


def stream_model(layer):
    x, reset = keras.Input((None, D), batch_size=B, name="x"), keras.Input((None,), batch_size=B, name="reset")
    return keras.Model({"x": x, "reset": reset}, layer(x, reset=reset))


def history(case, steps):
    """A tf.data pipeline of chunks in stream order, and the chunks themselves."""
    target = np.random.default_rng(3).normal(size=(B, steps, case.width)).astype("float32")
    chunks = stream_chunks(inputs(steps), target, batch_size=B, chunk=T)
    return chunks.prefetch(1), list(chunks.as_numpy_iterator())


def mean_squared_gradients(layer, chunk, carry):
    given, target = chunk
    with tf.GradientTape() as tape:
        y, *carry = layer(given["x"], reset=given["reset"], initial_state=carry)
        loss = tf.reduce_mean((y - target) ** 2)
    return tape.gradient(loss, variables(layer)), carry


def test_fit_carries_on_across_chunks_and_validation(case):
    layer = case.make(stateful=True, return_sequences=True)
    model = stream_model(layer)
    pipeline, chunks = history(case, 2 * T)
    other = tf.data.Dataset.from_tensors(({"x": 5 * inputs(), "reset": resets()}, np.zeros((B, T, case.width), "f")))
    model.compile(keras.optimizers.SGD(0.0), "mse")  # history under unchanged weights
    model.fit(pipeline.take(1), validation_data=other, shuffle=False, verbose=0)
    model.optimizer.learning_rate = 1.0
    before = layer.get_weights()
    explicit = twin(layer, case, **everything)
    model.fit(pipeline.skip(1), shuffle=False, verbose=0)
    _, carry = mean_squared_gradients(explicit, chunks[0], zero_carry(case))
    want, _ = mean_squared_gradients(explicit, chunks[1], carry)
    step = [b - a for a, b in zip(layer.get_weights(), before, strict=True)]
    close(step, want, rtol=1e-3)
    forgetful, _ = mean_squared_gradients(explicit, chunks[1], zero_carry(case))
    assert far(step, forgetful)


def apply(optimizer, gradients, weights):
    optimizer.apply_gradients(zip(gradients, weights, strict=True))


def test_weight_decay_and_moving_average_in_fit(case):
    """As of bare variables that the same optimiser is given the same gradients of."""

    def optimizer():
        return keras.optimizers.SGD(0.3, weight_decay=0.2, use_ema=True, ema_momentum=0.5)

    layer = case.make(stateful=True, return_sequences=True)
    model = stream_model(layer)
    pipeline, chunks = history(case, 3 * T)
    explicit = twin(layer, case, **everything)
    model.compile(optimizer(), "mse")
    model.fit(pipeline, shuffle=False, verbose=0)

    bare = [(tf.Variable if LEGACY else keras.Variable)(w) for w in explicit.get_weights()]
    reference, carry = optimizer(), zero_carry(case)
    reference.build(bare)
    for chunk in chunks:
        step, carry = mean_squared_gradients(explicit, chunk, carry)
        apply(reference, step, bare)
        explicit.set_weights([np.array(w) for w in bare])
    last = explicit.get_weights()
    reference.finalize_variable_values(bare)
    close(layer.get_weights(), [np.array(w) for w in bare], rtol=1e-3)
    assert far(layer.get_weights(), last)  # the average, not the last weights


def test_gradient_accumulation(case):
    """Weights that stay what they are over two chunks move by the mean of both gradients."""
    layer = case.make(stateful=True, return_sequences=True)
    layer.build((B, None, D))
    before, x = layer.get_weights(), inputs()
    explicit = twin(layer, case, **everything)
    first, carry = gradients(explicit, x[:, :3])
    second, _ = gradients(explicit, x[:, 3:], initial_state=carry)
    optimizer = keras.optimizers.SGD(0.1, **({} if LEGACY else {"gradient_accumulation_steps": 2}))
    if LEGACY:  # which has no such argument
        steps = [gradients(layer, x[:, part])[0] for part in (slice(0, 3), slice(3, 6))]
        apply(optimizer, [(a + b) / 2 for a, b in zip(*steps, strict=True)], layer.trainable_weights)
    else:
        for part in (slice(0, 3), slice(3, 6)):
            apply(optimizer, gradients(layer, x[:, part])[0], layer.trainable_weights)
    want = [w - 0.05 * (a + b) for w, a, b in zip(before, first, second, strict=True)]
    close(layer.get_weights(), want)


def test_time_distributed_around_it(case):
    layer = case.make(return_sequences=True)
    x = np.stack([inputs(), 2 * inputs(), -inputs()], axis=1)  # [B, 3, T, D]
    wrapped = keras.layers.TimeDistributed(layer)
    with tf.GradientTape() as tape:
        y = wrapped(x)
        loss = loss_of(y)
    got = tape.gradient(loss, variables(layer))
    with tf.GradientTape() as tape:
        want = tf.stack([layer(x[:, k]) for k in range(3)], axis=1)
        loss = loss_of(want)
    close([y, *got], [want, *tape.gradient(loss, variables(layer))])


def test_masked_steps_hold_what_was_there(case):
    x, mask = inputs(dtype="float64"), np.array([[0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]], bool)
    x[~mask] = np.nan  # padding may hold anything
    layer = case.make(dtype="float64", **everything)
    with tf.GradientTape() as tape:
        y, *carry = layer(x, mask=tf.constant(mask))
        loss = tf.reduce_sum(y**2)
    gradient = tape.gradient(loss, variables(layer))
    plain = twin(layer, case, dtype="float64", **everything)
    total, held = 0.0, np.zeros(y.shape)
    with tf.GradientTape() as tape:
        for b in range(B):
            z, *alone = plain(x[b : b + 1, mask[b]])
            close([c[b] for c in carry], [c[0] for c in alone], rtol=1e-9)
            for t, real in enumerate(np.cumsum(mask[b])):
                if real:
                    held[b, t] = z[0, real - 1]
                    total += tf.reduce_sum(z[0, real - 1] ** 2)
    np.testing.assert_allclose(y, held, rtol=1e-9)
    close(gradient, tape.gradient(total, variables(plain)), rtol=1e-9)
    last = twin(layer, case, dtype="float64")
    np.testing.assert_allclose(last(x, mask=tf.constant(mask)), held[:, -1], rtol=1e-9)


def test_checkpoints_hold_the_carry(case, tmp_path):
    layer, x = case.make(stateful=True), inputs()
    layer(x)
    assert len(layer.weights) == len(layer.trainable_weights)  # the carry is no weight
    path = tf.train.Checkpoint(layer=layer).save(tmp_path / "checkpoint")
    expected = layer(x)
    other = case.make(stateful=True)
    other(x)
    tf.train.Checkpoint(layer=other).restore(path).assert_consumed()
    close([other(x)], [expected])


def test_pickled_and_copied_models(case):
    model = keras.Sequential([keras.Input((None, D)), case.make(return_sequences=True)])
    x = inputs()
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.layers[-1] is not model.layers[-1]
        close([other(x)], [model(x)])
    fresh = keras.models.clone_model(model)
    fresh.set_weights(model.get_weights())
    close([fresh(x)], [model(x)])


def test_every_public_layer_is_in_the_list(layers):
    public = {c for c in vars(keras_rtrl.layers).values() if inspect.isclass(c) and issubclass(c, keras.layers.Layer)}
    assert public == {type(entry.make()) for entry in layers.values()}


@pytest.mark.parametrize("behaviour", range(4))
def test_lines_and_implementations_take_turns(layers, cases_of, behaviour):
    names = {line: [case.name for case in cases_of(behaviour, full=False, line=line)] for line in (0, 1)}
    assert sorted(names[0] + names[1]) == sorted(layers)
    assert set(names[0]) == {case.name for case in cases_of(behaviour + 1, full=False, line=1)}
    for line in (0, 1):
        over_two = cases_of(behaviour, full=False, line=line) + cases_of(behaviour + 2, full=False, line=line)
        assert set(over_two) == {case for case in cases_of(0, full=True) if case.name in names[line]}


def test_empty_inputs(case):
    """No streams, or no features: empty results, and gradients of zero."""
    layer = case.make(**everything)

    @tf.function(input_signature=[tf.TensorSpec((None, T, D))])
    def in_graph(x):
        return gradients(layer, x)

    layer.build((None, None, D))
    x = inputs(streams=0)
    for found, carry in (gradients(layer, x), gradients(layer, x, initial_state=zero_carry(case, 0)), in_graph(x)):
        assert [tuple(value.shape) for value in carry] == [(0, *shape) for shape in case.carry]
        close(found, [tf.zeros_like(w) for w in variables(layer)])
    assert layer(x)[0].shape == (0, T, case.width)

    if case.name == "stack":  # its Dense layers refuse a width of 0
        return
    layer = case.make(**everything)
    _, carry = gradients(layer, np.zeros((B, T, 0), "float32"))
    found, carry = gradients(layer, np.zeros((B, T, 0), "float32"), initial_state=carry)
    assert np.isfinite([np.sum(value) for value in (*found, *carry)]).all()


def test_a_reset_clears_nan_and_inf(case):
    """In the carry and in the inputs before it: what follows is that of a layer that starts there, gradients too."""
    layer, at = case.make(**everything), 3
    layer.build((None, None, D))
    x, broken = inputs(), inputs()
    broken[0, at - 2], broken[1, at - 1, 0] = np.nan, np.inf
    wrong = [tf.where(np.arange(c.shape[-2])[:, None] % 2 == 0, np.nan * tf.ones_like(c), c) for c in some_carry(case)]
    everywhere = tf.constant(resets(*((b, at) for b in range(B))))

    def run(x, reset, after):
        with tf.GradientTape() as tape:
            y, *carry = layer(x, initial_state=wrong, reset=reset)
            loss = loss_of(y[:, after:])
        return [y[:, after:], *carry], tape.gradient(loss, variables(layer))

    want, want_gradients = run(x[:, at:], everywhere[:, at:], 0)
    got, got_gradients = run(x, tf.constant(resets(*((b, 0) for b in range(B)), *((b, at) for b in range(B)))), at)
    close([*got, *got_gradients], [*want, *want_gradients])
    got, got_gradients = tf.function(run)(tf.constant(broken), everywhere, at)
    close(got, want)
    if case.name != "stack":  # whose Dense layers meet NaN
        close(got_gradients, want_gradients)
    # One step, as in acting and streaming.
    close(run(x[:, at : at + 1], everywhere[:, at : at + 1], 0)[0][:1], [want[0][:, :1]])


def test_nan_that_the_loss_depends_on_is_in_the_gradient(case):
    layer, x = case.make(**everything), inputs()
    layer.build((None, None, D))
    x[0, 1] = np.nan
    found, _ = gradients(layer, x, reset=resets((0, 3), (1, 2)))
    assert not np.isfinite(found[0]).all()
