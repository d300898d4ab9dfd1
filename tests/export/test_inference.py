"""Inference models, served by a fresh process that has TensorFlow and neither Keras nor this package."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import layers
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.export import inference_model

B, T, D, N = 4, 6, 5, 3
LONG = 3_000
SERVER = Path(__file__).with_name("serve.py")


def stateful():
    """Built with a fixed batch and a fixed number of steps."""
    x = keras.Input(batch_shape=(2, 3, D), name="x")
    y = keras.layers.Dense(4, activation="relu")(x)
    y = layers.ELSTM(N, stateful=True, return_sequences=True, name="elstm")(y)
    y = keras.layers.Dense(4, activation="tanh")(y)
    y = layers.RTU(N, stateful=True, return_sequences=True, return_state=True, name="rtu")(y)[0]
    return keras.Model(x, keras.layers.Dense(2, name="y")(y))


def carry_returned():
    """A reset of its own, dicts, and the carry among the outputs."""
    x = keras.Input((None, D), name="x")
    reset = keras.Input((None,), dtype="bool", name="reset")
    y, state, S, _ = layers.ELSTM(N, return_sequences=True, return_state=True, name="elstm")(x, reset=reset)
    return keras.Model({"x": x, "reset": reset}, {"y": y, "state": state, "S": S})


def stack():
    core = layers.RTRLStack([layers.ELSTM(N), keras.layers.Dense(4), layers.LRU(2)], gate=True, residual=True,
                            return_sequences=True, name="core")  # fmt: skip
    return keras.Sequential([keras.Input((None, D), name="x"), core, keras.layers.Dense(2, name="y")])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.cores = [layers.ELSTM(N, return_sequences=True, name="first"), layers.RTU(N, name="second")]
        self.head = keras.layers.Dense(2)

    def call(self, x):
        y = self.cores[0](x)
        return self.head(y), self.cores[1](y)


def subclassed():
    model = Subclassed()
    model(tf.zeros((2, 3, D)))
    return model


MODELS = {"stateful": stateful, "carry_returned": carry_returned, "stack": stack, "subclassed": subclassed}
STATES = {
    "stateful": {"elstm_state": (None, N, 1), "rtu_state": (None, N, 2)},
    "carry_returned": {"elstm_state": (None, N, 1)},
    "stack": {"core_state_1": (None, N, 1), "core_state_2": (None, 2, 2)},
    "subclassed": {"first_state": (None, N, 1), "second_state": (None, N, 2)},
}
OUTPUTS = {"stateful": ["y"], "carry_returned": ["y"], "stack": ["y"], "subclassed": ["output_0", "output_1"]}


def answers(name, model, x, reset):
    """What the model itself says to whole sequences, a list of outputs. The reset is that of stream 1 in the middle."""
    half = T // 2
    if name == "carry_returned":
        return [model({"x": x, "reset": reset}, training=False)["y"]]
    if name == "stateful":

        def begin_anew(streams=None):
            for layer in ("elstm", "rtu"):
                model.get_layer(layer).reset_state(streams)

        rows = []
        for streams, resets in ((x[:2], [1]), (x[2:], [])):
            first = model(streams[:, :half], training=False)
            begin_anew(resets)
            rows.append(tf.concat([first, model(streams[:, half:], training=False)], 1))
            begin_anew()
        return [tf.concat(rows, 0)]
    outputs = [value.numpy() for value in tf.nest.flatten(model(x, training=False))]
    for value, anew in zip(outputs, tf.nest.flatten(model(x[1:2, half:], training=False)), strict=True):
        if value.ndim == 3:
            value[1, half:] = anew[0]
        else:  # the last step's alone
            value[1] = anew[0]
    return outputs


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Inference models by name, what their models answer, and what a server that loaded them found and answered."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("served")
    models = {name: build() for name, build in MODELS.items()}
    modules = {name: inference_model(model) for name, model in models.items()}
    for name, module in modules.items():
        module.save(str(folder / name))
    # What the server's search must find: a layer that makes traces.
    layer = layers.ELSTM(N, return_state=True, implementation="tf")
    control = tf.Module()
    control.function = tf.function(layer).get_concrete_function(tf.TensorSpec([None, None, D]))
    control.weights = list(control.function.variables)
    tf.saved_model.save(control, str(folder / "control"))

    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(B, T, D)).astype("float32"),
        "reset": np.zeros((B, T), bool),
        "long_x": rng.normal(size=(1, LONG, D)).astype("float32"),
        "long_reset": rng.random((1, LONG)) < 1e-3,
    }
    data["reset"][1, T // 2] = True
    np.savez(folder / "in.npz", **data)
    words = [sys.executable, str(SERVER), str(folder), *models, "control"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        expected = {name: answers(name, model, data["x"], data["reset"]) for name, model in models.items()}
        expected["long"] = answers("carry_returned", models["carry_returned"], data["long_x"], data["long_reset"])
        said, _ = server.communicate()
    assert server.returncode == 0, said[-3000:]
    return modules, expected, np.load(folder / "out.npz")


@pytest.mark.parametrize("how", ["whole", "steps"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_as_the_model(served, name, how):
    """To a batch and a number of steps other than those that the model was built with."""
    _, expected, out = served
    for key, value in zip(OUTPUTS[name], expected[name], strict=True):
        got = out[f"{name}/{how}/{key}"]
        np.testing.assert_allclose(got if value.ndim == 3 else got[:, -1], value, atol=1e-6, err_msg=key)


def test_long_stream_one_step_at_a_time(served):
    _, expected, out = served
    assert out["long/y"].shape == (1, LONG, N)
    np.testing.assert_allclose(out["long/y"], expected["long"][0], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_files_hold_stock_operations_and_no_traces(served, name):
    _, _, out = served
    assert not out[f"{name}/foreign"].tolist()
    assert out[f"{name}/rank"] == 3
    assert out["control/foreign"].tolist() == ["KerasRtrlMadeUp"]
    assert out["control/rank"] == 5


@pytest.mark.parametrize("name", MODELS)
def test_names(served, name):
    """States after their layers; no trace among the outputs, and no state twice."""
    module = served[0][name]
    inputs = {key: tuple(spec.shape) for key, spec in module.step.structured_input_signature[1].items()}
    assert inputs == {"x": (None, None, D), "reset": (None, None), **STATES[name]}
    assert set(module.step.structured_outputs) == {*OUTPUTS[name], *STATES[name]}


@pytest.mark.parametrize("rows", [0, 1, B + 1])
@pytest.mark.parametrize("name", MODELS)
def test_states_and_resets_have_the_rows_of_the_input(served, name, rows):
    module = served[0][name]
    given = module.initial_state(batch_size=tf.constant(B))
    given = {"x": tf.zeros((B, T, D)), "reset": tf.zeros((B, T), tf.bool), **given}
    module.step(**given)
    for wrong in sorted({*given} - {"x"}):
        other = tf.zeros((rows, *given[wrong].shape[1:]), given[wrong].dtype)
        with pytest.raises(tf.errors.InvalidArgumentError, match="must have as many rows as "):
            module.step(**{**given, wrong: other})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"reset of .* must have the \[batch, time\]"):
        module.step(**{**given, "reset": tf.zeros((B, T + 1), tf.bool)})


def all_cells():
    """Built with other sizes than it is served with; nothing of it may loop over one step."""
    stacked = [layers.ELSTM(N), keras.layers.Dropout(0.5), layers.RTU(N, recurrence="nonlinear", activation="tanh")]
    cells = [layers.ELSTM(N), layers.RTU(N), layers.LRU(N), layers.EGRU(N), layers.MinGRU(N, implementation="auto")]
    for cell in cells:
        cell.return_sequences = True
    core = layers.RTRLStack(stacked, norm=True, gate=True, residual=True, return_sequences=True, name="core")
    x = keras.Input((7, D), batch_size=3, name="x")
    return keras.Sequential([x, keras.layers.Masking(), *cells, core, keras.layers.Dense(2, name="y")])


@(pytest.mark.full if LEGACY else lambda test: test)  # from either Keras it is the same graph
def test_one_step_converts_to_lite_rt():
    model = all_cells()
    module = inference_model(model, batch_size=1, steps=1)
    graph = module.step.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert not [node.op for node in nodes if "While" in node.op or "Assert" in node.op]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.step], module)
    run = tf.lite.Interpreter(model_content=converter.convert()).get_signature_runner()
    steps, random = 1_000, np.random.default_rng(0)
    x = random.normal(size=(1, steps, D)).astype("float32")
    x[0, 1] = 0.0  # masked
    reset = random.random((1, steps)) < 0.02
    state, got = {name: value.numpy() for name, value in module.initial_state().items()}, []
    for t in range(steps):
        out = run(x=x[:, t : t + 1], reset=reset[:, t : t + 1], **state)
        state = {name: out[name] for name in state}
        got.append(out["y"])
    free = inference_model(model)
    want = free.step(x=x, reset=reset, **free.initial_state(batch_size=tf.constant(1)))
    seen = np.arange(steps) != 1  # a call on the masked step alone has no output before it to repeat
    np.testing.assert_allclose(np.concatenate(got, 1)[:, seen], want["y"].numpy()[:, seen], atol=1e-5)
    for name, value in state.items():
        np.testing.assert_allclose(value, want[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("sizes", [{"batch_size": 2}, {"steps": 3}, {"batch_size": 2, "steps": 3}])
@pytest.mark.parametrize("name", ["stateful", "carry_returned", "subclassed"])
def test_sizes_given(served, name, sizes):
    """Of a model built with others, too; one may be given without the other."""
    module = inference_model(MODELS[name](), **sizes)
    B, T = sizes.get("batch_size"), sizes.get("steps")
    inputs = {key: tuple(spec.shape) for key, spec in module.step.structured_input_signature[1].items()}
    assert inputs == {"x": (B, T, D), "reset": (B, T), **{key: (B, *shape[1:]) for key, shape in STATES[name].items()}}
    states = module.initial_state() if B else module.initial_state(batch_size=tf.constant(2))
    x = tf.zeros((2, T or 4, D))
    out = module.step(x=x, reset=tf.zeros(x.shape[:2], tf.bool), **states)
    assert all(out[key].shape[0] == 2 for key in out)


def test_steps_that_a_model_cannot_be_called_with():
    model = keras.Sequential([keras.Input((T, D)), keras.layers.Conv1D(2, 3), layers.ELSTM(N)], name="conv")
    with pytest.raises(ValueError, match="steps must be None: conv cannot be called with 1 of them"):
        inference_model(model, steps=1)


def test_a_path_that_cannot_be_written(tmp_path):
    module = inference_model(keras.Sequential([keras.Input((None, D)), layers.ELSTM(N)]))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"path must be that of a folder, and .*file.* is a file"):
        module.save(tmp_path / "file")
    for path in (tmp_path / "file" / "below", tmp_path / ("long" * 100), Path("/proc/served")):
        with pytest.raises(OSError, match="path cannot be written, "):
            module.save(path)
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_are_shared():
    model = keras.Sequential([keras.Input((None, D), name="x"), layers.ELSTM(N, name="elstm")])
    module = inference_model(model)
    x = tf.random.normal((B, T, D))
    before = module.step(x=x, reset=tf.zeros((B, T), bool), **module.initial_state(batch_size=tf.constant(B)))
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    after = module.step(x=x, reset=tf.zeros((B, T), bool), **module.initial_state(batch_size=tf.constant(B)))
    np.testing.assert_allclose(after["elstm"], model(x), atol=1e-6)
    assert np.abs(after["elstm"] - before["elstm"]).max() > 1e-3


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_a_path_that_reads_as_a_keras_file_is_refused(name, tmp_path):
    model = keras.Sequential([keras.Input((None, D)), layers.ELSTM(N)])
    with pytest.raises(ValueError, match=f"path must be that of a folder, .*{name}"):
        inference_model(model).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def carry_handed_on():
    """A layer goes on from its whole carry, its state starts another, and a layer is called twice."""
    x = keras.Input((None, D), name="x")
    first = layers.ELSTM(N, return_sequences=True, return_state=True, name="first")
    a, *carry = first(x)
    b, *_ = first(x, initial_state=carry)
    c = layers.ELSTM(N, return_sequences=True, name="second")(x, initial_state=carry[0])
    shared = layers.ELSTM(2, return_sequences=True, name="shared")
    return keras.Model(x, keras.layers.Concatenate(name="y")([shared(a), shared(b), c]))


def own_state():
    """The state is an input of the model and one of its outputs."""
    x, state = keras.Input((None, D), name="x"), keras.Input((N, 1), name="state")
    y, state_after = layers.ELSTM(N, return_state=True, name="elstm")(x, initial_state=state)
    return keras.Model([x, state], [keras.layers.Dense(1, name="y")(y), state_after])


def distributed():
    x = keras.Input((T, 2, D), name="x")
    y = keras.layers.TimeDistributed(layers.ELSTM(N))(x)
    return keras.Model(x, layers.RTU(N, name="rtu")(y))


def masked():
    core = layers.ELSTM(N, return_sequences=True, name="elstm")
    return keras.Sequential([keras.Input((None, D), name="x"), keras.layers.Masking(), core])


@pytest.mark.parametrize(
    ("build", "shapes", "states", "outputs"),
    [
        (carry_handed_on, [(B, T, D)], ["first_state", "shared_state", "shared_state_2"], ["y"]),
        (own_state, [(B, T, D), (B, N, 1)], [], ["y", "elstm_state"]),
        (distributed, [(B, T, 2, D)], ["rtu_state"], ["rtu"]),
        (masked, [(B, T, D)], ["elstm_state"], ["elstm"]),
    ],
)
def test_other_wirings(build, shapes, states, outputs):
    model = build()
    module = inference_model(model)
    inputs = [np.random.default_rng(0).normal(size=shape).astype("float32") for shape in shapes]
    inputs[0][0, -2:] = 0.0  # what Masking masks
    named = dict(zip(["x", "state"], map(tf.constant, inputs), strict=False))
    given = module.initial_state(batch_size=tf.constant(B))
    if states:
        named["reset"] = tf.zeros((B, T), bool)
    assert sorted(given) == states
    got = module.step(**named, **given)
    assert sorted(got) == sorted({*outputs, *states})
    for name, value in zip(outputs, tf.nest.flatten(model(inputs if inputs[1:] else inputs[0])), strict=True):
        np.testing.assert_allclose(got[name], value, atol=1e-6, err_msg=name)


def traces_given():
    x = keras.Input((None, D))
    carry = [keras.Input(shape) for shape in ((N, 1), (D, 2, N, 1), (4, N, 1))]
    return keras.Model([x, *carry], layers.ELSTM(N, name="elstm")(x, initial_state=carry))


def traces_used():
    x = keras.Input((None, D))
    y, _, S, _ = layers.ELSTM(N, return_state=True, name="elstm")(x)
    return keras.Model(x, [y, keras.layers.Flatten()(S)])


def keras_state():
    x = keras.Input(batch_shape=(B, T, D))
    return keras.Sequential(
        [x, layers.ELSTM(N, return_sequences=True), keras.layers.LSTM(N, stateful=True, name="lstm")]
    )


def stateful_inside():
    inner = layers.ELSTM(N, stateful=True, name="elstm")
    return keras.Sequential([keras.Input(batch_shape=(B, T, 2, D)), keras.layers.TimeDistributed(inner)])


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: None, TypeError, "model must be a model of .*, got builtins.NoneType"),
        (lambda: layers.ELSTM(N), TypeError, "model must be a model of .*ELSTM"),
        (lambda: keras.Sequential([layers.ELSTM(N)], name="new"), ValueError, "model must be built, new is not"),
        (lambda: keras.Sequential([keras.Input((T, D)), keras.layers.Dense(1)]), ValueError, "must have an RTRL layer"),
        (traces_given, ValueError, "model gives elstm traces as initial_state"),
        (traces_used, ValueError, "model computes with traces that elstm returns"),
        (keras_state, ValueError, "lstm is a stateful layer of Keras' own"),
        (stateful_inside, ValueError, "elstm is stateful inside TimeDistributed"),
    ],
)
def test_models_it_cannot_serve(model, error, message):
    with pytest.raises(error, match=message):
        inference_model(model())


@pytest.mark.skipif(LEGACY, reason="the page is written for Keras 3")
def test_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "export.md"
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if "ale_py" not in block:  # tests/train/test_export.py plays that one
            exec(block, names)
    assert names["y"].shape == (1, 1, 1)
