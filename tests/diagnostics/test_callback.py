"""RTRLDiagnostics as a user of `model.fit` sees it; under Keras 3 and under tf-keras."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.data import stream_chunks
from keras_rtrl.diagnostics import RTRLDiagnostics
from keras_rtrl.layers import ELSTM, LRU, RTU, RTRLStack

B, T, D, N = 2, 4, 3, 5
stateful = {"stateful": True, "return_sequences": True}
NORMS = {f"core/trace_norm/{name}" for name in ("f", "z", "w_f", "w_z", "b_f", "b_z")}
LENGTHS = {"core/memory_length/median", "core/memory_length/q90"}


def data(chunks=3, seed=0):
    """One sequence a stream of so many chunks: a reset at the start of every epoch."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, chunks * T, D)).astype("float32")
    return stream_chunks(x, np.sin(x.cumsum(1)[..., :1]).astype("float32"), batch_size=B, chunk=T)


def make(*recurrent, rate=0.0, above=(), **compiled):
    keras.utils.set_random_seed(1)
    x = keras.Input((T, D), batch_size=B, name="x")
    reset = keras.Input((T,), batch_size=B, name="reset", dtype="bool")
    y = x
    for layer in recurrent or [ELSTM(N, name="core", **stateful)]:
        y = layer(y, reset=reset)
    for layer in above:
        y = layer(y)
    model = keras.Model({"x": x, "reset": reset}, keras.layers.Dense(1)(y))
    model.compile(**{"optimizer": keras.optimizers.SGD(rate), "loss": "mse", **compiled})
    return model


def fit(model, dataset, folder, epochs=2, callbacks=(), given=None, steps_per_epoch=None, **kw):
    """{tag: {step: value}} of what the callback left; fit itself may be `given` other data."""
    diagnostics = RTRLDiagnostics(folder, **{"data": dataset, "chunks": 2, "every": 1, **kw})
    given = dataset if given is None else given
    model.fit(
        given,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, diagnostics],
    )
    return read(folder)


def read(folder):
    found = {}
    for path in sorted(folder.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_trace_norms_are_those_of_the_carry(tmp_path):
    model, carries = make(rate=0.1, run_eagerly=True), []
    core = model.get_layer("core")
    recorder = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: carries.append(core.get_carry()))
    found = fit(model, data(), tmp_path, data=None, every=2, callbacks=[recorder])
    assert set(found) == NORMS
    for step in (2, 4):  # of 6
        _, S, r = carries[step - 1]
        for name, traces in (("f", S[:, :, 0]), ("z", S[:, :, 1]), ("b_f", r[:, 2])):
            want = np.mean([np.linalg.norm(traces[b]) for b in range(B)])
            assert found[f"core/trace_norm/{name}"].pop(step) == pytest.approx(want, rel=1e-5)
    assert not found["core/trace_norm/f"]


def test_nothing_is_stale_under_weights_that_stay(tmp_path):
    inner = [ELSTM(N), keras.layers.Dense(4), LRU(N)]
    stack = RTRLStack(inner, norm=True, gate=True, residual=True, name="stack", **stateful)
    model = make(RTU(N, name="core", **stateful), stack, run_eagerly=True)
    found = fit(model, data(), tmp_path, chunks=4)
    for name in ("core", "stack/1", "stack/2"):
        values = found[f"{name}/staleness/cosine_over_4_chunks"]
        assert list(values) == [3, 4, 5]  # the first with 4 chunks is the fourth; a reset is always among them
        np.testing.assert_allclose(list(values.values()), 1, atol=1e-6)
        assert {f"{name}/memory_length/q90", f"{name}/trace_norm/{'f' if name == 'stack/1' else 'nu'}"} <= set(found)


def test_what_lies_before_the_chunks_counts_as_stale(tmp_path):
    cosine = fit(make(run_eagerly=True), data(4), tmp_path, epochs=1)["core/staleness/cosine_over_2_chunks"]
    assert cosine[1] == pytest.approx(1, abs=1e-6)  # from the reset on
    assert cosine[3] < 1 - 1e-6


def test_reset_by_hand_is_repeated(tmp_path):
    model = make(run_eagerly=True)
    by_hand = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: model.get_layer("core").reset_state())
    without = data().map(lambda x, y: ({**x, "reset": tf.zeros_like(x["reset"])}, y))
    found = fit(model, without, tmp_path, callbacks=[by_hand], chunks=3, worth=True)
    for tag in ("core/staleness/cosine_over_3_chunks", "core/worth/rtrl"):
        np.testing.assert_allclose(list(found[tag].values()), 1, atol=1e-6)
    assert min(found["core/worth/tbptt_1"].values()) < 0.999


def test_staleness_against_bptt_under_the_present_weights(tmp_path):
    """Over two chunks and no reset, with a regulariser that must not count."""
    layer = ELSTM(N, name="core", kernel_regularizer="l2", bias_regularizer="l1", **stateful)
    model, chunks, weights, carries = make(layer, rate=3.0), data(4), [], []

    def record(batch, logs):
        weights.append(model.get_weights())
        carries.append(layer.get_carry() if batch else None)

    recorder = keras.callbacks.LambdaCallback(on_train_batch_begin=record)
    found = fit(model, chunks, tmp_path, epochs=1, callbacks=[recorder], worth=True)
    found.pop("core/worth/reach", None)
    cosines = found["core/staleness/cosine_over_2_chunks"]
    worths = {f"core/worth/{name}" for name in ("rtrl", "tbptt_1", "tbptt_2", "tbptt_4", "noise")}
    assert set(found) == {*NORMS, *LENGTHS, "core/staleness/cosine_over_2_chunks", *worths}
    assert all(list(values) == [1, 2, 3] for values in found.values())
    batches = list(chunks)
    twin, head = ELSTM(N, return_sequences=True, return_state=True), keras.layers.Dense(1)
    twin.build((B, T, D)), head.build((B, T, N))
    for last in (2, 3):
        count = len(twin.weights)
        twin.set_weights(weights[last][:count]), head.set_weights(weights[last][count:])
        (first, _), (now, target) = batches[last - 1 : last + 1]

        def gradient(x, carry, target=target, mode="rtrl"):
            twin.gradient = mode
            with tf.GradientTape() as tape:
                y, *_ = twin(x, initial_state=carry)
                loss = tf.reduce_mean((head(y[:, -T:]) - target) ** 2)
            recurrent = [w if LEGACY else w.value for w in twin.recurrent_weights().values()]
            return np.concatenate([np.ravel(g) for g in tape.gradient(loss, recurrent)])

        carried = gradient(now["x"], [tf.constant(v) for v in carries[last]])
        anew = gradient(tf.concat([first["x"], now["x"]], 1), tf.constant(carries[last - 1][0]))
        _, fresh = twin(first["x"], initial_state=tf.constant(carries[last - 1][0]))
        instant = gradient(now["x"], fresh, mode="instant")

        def cosine(other, anew=anew):
            return other @ anew / np.linalg.norm(other) / np.linalg.norm(anew)

        assert cosine(carried) < 0.999
        assert cosines[last] == pytest.approx(cosine(carried), abs=1e-5)
        assert cosine(instant) < 0.999
        assert found["core/worth/tbptt_1"][last] == pytest.approx(cosine(instant), abs=1e-5)
        assert found["core/worth/rtrl"][last] < 0.9999


def test_training_is_not_disturbed(tmp_path):
    def trained(*callbacks):
        keras.utils.set_random_seed(1)
        other = keras.layers.SimpleRNN(4, **stateful)
        above = [other, keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
        adam = keras.optimizers.Adam(0.1)
        model = make(above=above, optimizer=adam, metrics=["mae"])
        history = model.fit(data(), epochs=3, shuffle=False, verbose=0, callbacks=list(callbacks)).history
        variables = [*model.variables, *other.states, *(adam.variables() if LEGACY else adam.variables)]
        return [np.array(v) for v in variables], model.get_layer("core").get_carry(), history

    alone = trained()
    measured = trained(RTRLDiagnostics(tmp_path, data=data(), chunks=3, every=1, worth=True))
    assert len(read(tmp_path)["core/staleness/cosine_over_3_chunks"]) == 7
    for got, want in zip(tf.nest.flatten(measured), tf.nest.flatten(alone), strict=True):
        np.testing.assert_array_equal(got, want)


def test_models_compiled_by_xla(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "RTRLDiagnostics")  # what XLA trains and what is run here lead to one state
        found = fit(make(jit_compile=True), data(2), tmp_path)
    assert set(found) == {*NORMS, *LENGTHS, "core/staleness/cosine_over_2_chunks"}
    cosines = found["core/staleness/cosine_over_2_chunks"]
    assert cosines[1] == cosines[3] == pytest.approx(1, abs=1e-6)  # the reset is among the two


def test_memory_length_of_known_decay(tmp_path):
    zeros = {f"{role}_initializer": "zeros" for role in ("kernel", "recurrent", "bias")}
    layers = {
        1 + np.exp(3): ELSTM(N, forget_bias=3, name="elstm", **zeros, **stateful),
        100: RTU(N, r_min=0.99, r_max=0.99 + 1e-6, name="rtu", **stateful),
        5: LRU(N, r_min=0.8, r_max=0.8 + 1e-6, name="lru", gradient="tbptt", **stateful),
    }
    found = fit(make(*layers.values(), run_eagerly=True), data(2), tmp_path, epochs=1)
    for length, layer in layers.items():
        for part in ("median", "q90"):
            assert found[f"{layer.name}/memory_length/{part}"][1] == pytest.approx(length, rel=1e-2)
    tags = {tag.split("/")[1] for tag in found if tag.startswith("lru")}
    assert tags == {"memory_length"}  # it has no traces


def generated():
    """A dataset of unknown length."""
    return tf.data.Dataset.from_generator(lambda: iter(data()), output_signature=data().element_spec)


@pytest.mark.parametrize(
    ("dataset", "given", "steps"),
    [(data(4), data(4).repeat(), 3), (generated(), generated(), None)],
    ids=["steps_per_epoch", "unknown_length"],
)
def test_data_keep_step_with_fit(tmp_path, dataset, given, steps):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "RTRLDiagnostics")
        model = make(rate=0.1, run_eagerly=True)
        found = fit(model, dataset, tmp_path, epochs=3, given=given, steps_per_epoch=steps, chunks=99)
    assert list(found["core/memory_length/median"])[:8] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_data_of_other_batches_are_noticed(tmp_path):
    with pytest.warns(UserWarning, match="core ended a batch in another state than that batch of data leads to"):
        fit(make(run_eagerly=True), data(seed=1), tmp_path, given=data(), chunks=99)


def test_models_that_do_not_fit_are_refused_before_training(tmp_path):
    def refused(model, message, chunks=None):
        before = model.get_weights()
        with pytest.raises(ValueError, match=message):
            fit(model, data() if chunks is None else chunks, tmp_path, given=data())
        for got, want in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(got, want)

    refused(make(ELSTM(N, return_sequences=True), rate=1.0), "must have an RTRL layer with stateful=True, and has none")
    refused(make(rate=1.0, steps_per_execution=2), "must be compiled with steps_per_execution=1")
    refused(make(rate=1.0), "data must have at least one batch, and has none", chunks=data().take(0))


@pytest.mark.full
def test_worth_of_each_layer_of_a_stack(tmp_path):
    stack = RTRLStack([ELSTM(N, forget_bias=2), LRU(N)], norm=True, gate=True, residual=True, name="stack", **stateful)
    found = fit(make(stack), data(), tmp_path, chunks=3, epochs=1, worth=True)
    for name in ("stack/1", "stack/2"):
        assert found[f"{name}/worth/rtrl"][2] == pytest.approx(1, abs=1e-6)
        assert found[f"{name}/worth/tbptt_1"][2] < 0.999


def test_worth_needs_data():
    with pytest.raises(ValueError, match="worth must be False without data, got True"):
        RTRLDiagnostics("logs", worth=True)


def test_missing_tensorboard_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="RTRLDiagnostics needs tensorboard, which is not installed"):
        RTRLDiagnostics("logs")
