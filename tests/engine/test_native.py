"""The loader of the native op, where it applies, and what its functions promise beyond their twins' values."""

import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import keras_rtrl
from keras_rtrl.cells import ELSTMCell, RTRLCell, RTUCell
from keras_rtrl.engine import Carry, native, streaming
from keras_rtrl.testing.proofs import Case

PACKAGE = pathlib.Path(native.__file__).resolve().parents[1]  # where the library is, also from Bazel's links
REASON = native.info()["why_not"]
needs_library = pytest.mark.skipif(REASON is not None, reason=f"the native op: {REASON}")


class OtherPhi(ELSTMCell):
    def phi(self, state, u, c):
        return super().phi(state, u, c)


class OtherOutput(ELSTMCell):
    def output(self, x, state, w):
        return state[0]


class Unknown(ELSTMCell):
    native = "gru"


class Misnamed(ELSTMCell):
    native = "rtu_linear"


class Without(RTRLCell):
    gates = ("u",)

    def phi(self, state, u, c):
        return (state[0] + u["u"],)


@pytest.fixture(scope="module")
def case():
    return Case(ELSTMCell(3))


@pytest.fixture
def loader(tmp_path):
    """Makes a loader that looks for its library in a folder of its own: (library or None, stamp or None) -> module."""

    def make(library=None, stamp=None):
        (tmp_path / "engine").mkdir()
        (tmp_path / "_native").mkdir()
        path = shutil.copy(native.__file__, tmp_path / "engine")
        if library is not None:
            (tmp_path / "_native" / "libkeras_rtrl.so").write_bytes(library)
        if stamp is not None:
            (tmp_path / "_native" / "libkeras_rtrl.json").write_text(stamp)
        spec = importlib.util.spec_from_file_location("another_native", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return make


# The loader.


def test_public_name():
    assert keras_rtrl.native is native


def test_without_a_library(loader):
    other = loader()
    facts = other.info()
    assert not facts["built"]
    assert "not built" in facts["why_not"]
    assert facts["tensorflow"] == tf.__version__
    assert facts["tensorflow_built_for"] is None
    assert not other.choose("auto", ELSTMCell(3), "float32")
    with pytest.raises(RuntimeError, match="implementation='native' cannot be had: the library is not built"):
        other.choose("native", ELSTMCell(3), "float32")
    with pytest.raises(RuntimeError, match="not built"):
        other.contract(ELSTMCell(3), *[None] * 5)


def test_another_tensorflow_is_refused_unopened(loader):
    facts = loader(b"opening this would fail", json.dumps({"tensorflow": "2.20.1"})).info()
    assert not facts["built"]
    assert facts["why_not"] == f"the library was built for TensorFlow 2.20.1, this is TensorFlow {tf.__version__}"
    assert facts["tensorflow_built_for"] == "2.20.1"


@pytest.mark.parametrize("stamp", [None, "", "[]", "{}"])
def test_a_library_without_its_stamp_is_refused(loader, stamp):
    assert "does not say which TensorFlow" in loader(b"opening this would fail", stamp).info()["why_not"]


def test_a_library_that_cannot_be_opened(loader):
    stamp = json.dumps({"tensorflow": tf.__version__})
    assert "cannot be loaded" in loader(b"no library", stamp).info()["why_not"]


def test_opened_once_from_many_threads(loader, monkeypatch):
    other, opened = loader(b"no library", json.dumps({"tensorflow": tf.__version__})), []

    def slow(path):
        opened.append(path)
        time.sleep(0.05)
        raise OSError("no library")

    monkeypatch.setattr(tf, "load_op_library", slow)
    threads = [threading.Thread(target=other.info) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1


@needs_library
def test_fresh_process_with_a_library_for_another_tensorflow(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "keras_rtrl", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "keras_rtrl" / "_native" / "libkeras_rtrl.json").write_text('{"tensorflow": "2.18.0"}')
    code = """
import sys, numpy as np, keras_rtrl
assert keras_rtrl.__file__.startswith(sys.argv[1]), keras_rtrl.__file__
print(keras_rtrl.native.info()["why_not"])
print(keras_rtrl.layers.ELSTM(2)(np.ones((1, 3, 2), "float32")).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [
        f"the library was built for TensorFlow 2.18.0, this is TensorFlow {tf.__version__}",
        "(1, 2)",
    ]


@needs_library
def test_fresh_process_with_a_library_of_other_sources():
    code = "from keras_rtrl.engine import native; native._OPS_VERSION += 1; print(native.info()['why_not'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "built from other sources than this version's: build it again" in done.stdout


@needs_library
@pytest.mark.skipif(native.info()["cuda"] is None or shutil.which("nm") is None, reason="needs CUDA kernels, and nm")
def test_the_cuda_runtime_is_the_library_s_own():
    """TensorFlow exports the runtime's functions too, of another CUDA version."""
    symbols = subprocess.run(["nm", "-D", native.info()["path"]], capture_output=True, text=True, check=True).stdout
    assert "keras_rtrl_cuda_forward" in symbols
    assert not re.findall(r" (?:__)?cuda[A-Z]\w*", symbols)


# Where it applies.


@needs_library
def test_info():
    facts = native.info()
    assert facts["why_not"] is None
    assert facts["simd"] in ("baseline", "avx2", "avx512")
    assert "elstm" in facts["cells"]
    assert facts["devices"]["CPU:0"] is None
    assert facts["tensorflow_built_for"].split(".")[:2] == tf.__version__.split(".")[:2]


@needs_library
@pytest.mark.parametrize(
    "cell",
    [
        ELSTMCell(3),
        OtherOutput(3),
        RTUCell(3),
        *(RTUCell(3, recurrence="nonlinear", activation=activation) for activation in ("relu", "tanh", "linear")),
    ],
    ids=lambda cell: cell.native,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_applies(cell, dtype):
    assert native.why_not(cell, dtype) is None
    assert native.choose("native", cell, dtype)


@needs_library
@pytest.mark.parametrize(
    ("cell", "dtype", "reason"),
    [
        (OtherPhi(3), "float32", "OtherPhi overrides phi"),
        (Unknown(3), "float32", "no kernels called 'gru'"),
        (Misnamed(3), "float32", "its kernels 'rtu_linear' have"),
        (Without(3), "float32", "Without has no native kernels"),
        (ELSTMCell(3), "float16", "not in float16"),
    ],
)
def test_applies_not(cell, dtype, reason):
    assert reason in native.why_not(cell, dtype)
    assert not native.choose("auto", cell, dtype)
    with pytest.raises(RuntimeError, match=reason):
        native.choose("native", cell, dtype)


@needs_library
def test_choice():
    assert native.choose("auto", ELSTMCell(3), "float32")
    assert not native.choose("tf", ELSTMCell(3), "float32")
    with pytest.raises(ValueError, match="implementation must be one of"):
        native.choose("cuda", ELSTMCell(3), "float32")


@needs_library
@pytest.mark.skipif(bool(tf.config.get_visible_devices("GPU")), reason="the GPU here is a real one")
def test_not_automatic_beside_a_gpu_that_it_cannot_use(monkeypatch):
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: [gpu])
    assert not native.choose("auto", ELSTMCell(3), "float32")
    assert native.choose("native", ELSTMCell(3), "float32")
    assert re.search("built without CUDA|CUDA driver", native.info()["devices"]["GPU:0"])


@needs_library
@pytest.mark.parametrize("jit_compile", [False, True])
def test_never_under_xla(jit_compile):
    seen = {}

    def ask(place):
        reason = native.why_not(ELSTMCell(3), "float32")
        seen[place] = reason is not None and "XLA" in reason

    @tf.function
    def inner(x):
        ask("inner function")
        return x

    @tf.function(jit_compile=jit_compile)
    def outer(x):
        ask("function")

        def body(i, value):
            ask("loop")
            return i + 1, inner(value)

        _, x = tf.while_loop(lambda i, _: i < 2, body, (0, x))

        def branch():
            ask("branch")
            return 2.0 * x

        return tf.cond(x > 0, branch, lambda: x)

    outer(tf.constant(1.0))
    ask("eager")
    assert seen == {
        "function": jit_compile,
        "loop": jit_compile,
        "inner function": jit_compile,
        "branch": jit_compile,
        "eager": False,
    }


# The functions.


@needs_library
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"state": tf.zeros((3, 4, 1), tf.float64)},
            r"u must have shape .* = \[3, \?, 8\] for cell elstm, got \[3, 8, 6\]",
        ),
        ({"u": tf.zeros((3, 8, 7), tf.float64)}, r"u must have shape \[batch, time, gates \* units\] = \[3, \?, 6\]"),
        ({"reset": tf.zeros((3, 7), tf.bool)}, r"reset must have shape \[batch, time\] = \[3, 8\].*got \[3, 7\]"),
        ({"mask": tf.zeros((3,), tf.bool)}, r"mask must have shape \[batch, time\] = \[3, 8\].*got \[3\]"),
        (
            {"rho": dict.fromkeys(("w_f", "w_z", "b_f", "b_z"), tf.zeros(4, tf.float64))},
            r"rho must have shape \[units\]",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_shapes(case, change, message, in_graph):
    arguments = {"u": tf.zeros((3, 8, 6), tf.float64), "rho": case.rho, "state": case.carry.state, **change}
    call = lambda: native.forward(case.cell, **arguments)  # noqa: E731
    with pytest.raises(ValueError if in_graph else tf.errors.InvalidArgumentError, match=message):
        (tf.function(call) if in_graph else call)()


@needs_library
def test_shapes_unknown_in_a_graph_are_checked_when_it_runs(case):
    signature = [tf.TensorSpec(None, tf.float64), tf.TensorSpec((3, 3, 1), tf.float64)]

    @tf.function(input_signature=signature)
    def forward(u, state):
        saved, (s,) = native.forward(case.cell, state, u, case.rho)
        assert saved.shape.as_list() == [3, None, 6]
        assert s.shape.as_list() == [3, None, 3]
        return s

    assert forward(tf.zeros((3, 2, 6), tf.float64), case.carry.state).shape == (3, 2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="u must have shape"):
        forward(tf.zeros((3, 2, 5), tf.float64), case.carry.state)
    with pytest.raises(tf.errors.InvalidArgumentError, match="time must be at least 1"):
        forward(tf.zeros((3, 0, 6), tf.float64), case.carry.state)


@needs_library
def test_no_silent_gradient(case):
    u = tf.zeros((3, 8, 6), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(u)
        _, (s,) = native.forward(case.cell, case.carry.state, u, case.rho)
    with pytest.raises(LookupError, match="KerasRtrlForward has no gradient of its own"):
        tape.gradient(s, u)


@needs_library
def test_inputs_keep_their_values(case):
    """Buffers are taken over only where nothing else needs them."""
    cell, rho, state = case.cell, case.rho, case.carry.state
    u = tf.constant(np.random.default_rng(0).normal(size=(3, 8, 6)))
    inputs = {"u": u, "state": state, "S": case.carry.S, "r": case.carry.r, "x": case.x}
    before = {name: value.numpy() for name, value in inputs.items()}
    saved, states = native.forward(cell, state, u, rho, case.reset, case.mask)
    kept = saved.numpy()
    native.trace(cell, state, case.x, saved, states, case.carry.S, case.carry.r, rho, case.reset, case.mask)
    native.adjoint(cell, state, saved, states, states, rho, case.reset, case.mask)
    np.testing.assert_array_equal(saved, kept)
    for name, value in inputs.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@needs_library
def test_two_runs_agree_bit_for_bit():
    cell, rng = RTUCell(70, recurrence="nonlinear", activation="tanh"), np.random.default_rng(0)

    def draw(*shape):
        return tf.constant(rng.normal(size=shape), tf.float32)

    rho = {name: 0.1 * draw(70) for name in cell.unit_names}
    x, u, state, S, r = draw(5, 40, 33), draw(5, 40, 140), draw(5, 70, 2), draw(5, 33, 2, 70, 2), draw(5, 2, 70, 2)

    def run():
        saved, states = native.forward(cell, state, u, rho)
        traces = native.trace(cell, state, x, saved, states, S, r, rho)
        du, d_rho, start, _ = native.adjoint(cell, state, saved, states, states, rho)
        sums = native.contract(cell, start, S, r, tf.zeros((33, 140)), d_rho)
        return [t.numpy() for t in (saved, *states, *traces, du, d_rho, start, *sums)]

    first = run()
    for _ in range(3):
        for got, want in zip(run(), first, strict=True):
            np.testing.assert_array_equal(got, want)


def _variables(case):
    return Carry(*(tf.Variable(value + 0) for value in case.carry))


def _address(variable):
    return np.from_dlpack(variable.read_value()).ctypes.data


@needs_library
@pytest.mark.parametrize("in_graph", [False, True])
def test_streaming_update_works_in_place(case, in_graph):
    cell, twin, own = case.cell, _variables(case), _variables(case)
    params = {"kernel": case.kernel, **case.rho}
    x, reset, e = case.x[:, 0], case.reset[:, 0], tf.ones((2, 3, 3, 1), tf.float64)

    def step():
        state, local = native.streaming_forward(cell, own.state.value(), x, case.kernel, case.rho, reset)
        return state, native.streaming_update(cell, own.S, own.r, x, local, e)

    step = tf.function(step) if in_graph else step
    addresses = _address(own.S), _address(own.r)
    for _ in range(2):
        want_state, pending = streaming.forward(cell, params, twin, x, reset, implementation="tf")
        want = streaming.update(twin, pending, e)
        state, (d_kernel, d_rho) = step()
        own.state.assign(state)
        np.testing.assert_allclose(state, want_state, rtol=1e-12)
        np.testing.assert_allclose(own.S, twin.S, rtol=1e-12)
        np.testing.assert_allclose(own.r, twin.r, rtol=1e-12)
        np.testing.assert_allclose(d_kernel, want["kernel"], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(d_rho, tf.stack([want[name] for name in cell.unit_names], 1), rtol=1e-12, atol=1e-15)
    assert (_address(own.S), _address(own.r)) == addresses


@needs_library
def test_streaming_update_leaves_values_read_before(case):
    own = _variables(case)
    held, before = own.S.read_value(), own.S.numpy()
    x = case.x[:, 0]
    _, local = native.streaming_forward(case.cell, case.carry.state, x, case.kernel, case.rho)
    native.streaming_update(case.cell, own.S, own.r, x, local, tf.ones((1, 3, 3, 1), tf.float64))
    np.testing.assert_array_equal(held, before)
    assert np.any(own.S.numpy() != before)


@needs_library
def test_streaming_update_refuses_what_it_cannot_update(case):
    own = _variables(case)
    x, e = case.x[:, 0], tf.ones((1, 3, 3, 1), tf.float64)
    _, local = native.streaming_forward(case.cell, case.carry.state, x, case.kernel, case.rho)
    with pytest.raises(TypeError, match=r"S must be a tf\.Variable"):
        native.streaming_update(case.cell, case.carry.S, own.r, x, local, e)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unit_traces must have shape"):
        native.streaming_update(case.cell, own.S, tf.Variable(own.S), x, local, e)
    with pytest.raises(tf.errors.InvalidArgumentError, match="two variables"):
        native.streaming_update(case.cell, own.S, own.S, x, local, e)
    narrow = tf.Variable(tf.cast(own.S, tf.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="traces must be a variable of dtype double"):
        native.streaming_update(case.cell, narrow, own.r, x, local, e)
    np.testing.assert_array_equal(own.S, case.carry.S)


@needs_library
@pytest.mark.parametrize("cell", [ELSTMCell, RTUCell])
def test_no_units(cell):
    """A cell has one unit at least; the op takes none too, and then sums nothing."""
    cell = cell(1)
    m, stored, P = cell.components, len(cell.stored_gates), len(cell.unit_names)
    rho = dict.fromkeys(cell.unit_names, tf.zeros(0))
    x, state, S, r = tf.ones((2, 3, 4)), tf.zeros((2, 0, m)), tf.zeros((2, 4, stored, 0, m)), tf.zeros((2, P, 0, m))
    saved, states = native.forward(cell, state, tf.zeros((2, 3, 0)), rho)
    traces = native.trace(cell, state, x, saved, states, S, r, rho)
    du, d_rho, start, _ = native.adjoint(cell, state, saved, states, states, rho)
    sums = native.contract(cell, start, S, r, tf.zeros((4, 0)), d_rho)
    new, local = native.streaming_forward(cell, state, x[:, 0], tf.zeros((4, 0)), rho)
    updated = native.streaming_update(cell, tf.Variable(S), tf.Variable(r), x[:, 0], local, tf.zeros((5, 2, 0, m)))
    assert [tuple(value.shape) for value in (*states, *traces, du, *sums, new, *updated)] == [
        *[(2, 3, 0)] * m, (2, 4, stored, 0, m), (2, P, 0, m),
        (2, 3, 0), (4, 0), (P, 0), (2, 0, m), (5, 4, 0), (5, P, 0),
    ]  # fmt: skip


@needs_library
def test_no_streams_give_gradients_of_zero(case):
    """The first stream writes the sums: without one they are written all the same."""
    own = Carry(*(tf.Variable(value[:0]) for value in case.carry))
    x = case.x[:0, 0]
    _, local = native.streaming_forward(case.cell, own.state.value(), x, case.kernel, case.rho)
    for K in (0, 1, 2, 3):
        sums = native.streaming_update(case.cell, own.S, own.r, x, local, tf.ones((K, 0, 3, 1), tf.float64))
        for got, width in zip(sums, ((4, 6), (4, 3)), strict=True):
            np.testing.assert_array_equal(got, np.zeros((K, *width)))
