"""Every documented argument, tried wrong once: one clear error that names it, and nothing computed.

The arguments are found in the signatures, so that one without a wrong value here fails. What the functions of
`keras_rtrl.engine` and `keras_rtrl.diagnostics` are given is tensors of a layer, which checks what it was given.
"""

import inspect
from unittest.mock import MagicMock

import numpy as np
import pytest

from keras_rtrl import cells, data, diagnostics, export, layers, testing
from keras_rtrl._keras import keras
from keras_rtrl.layers.carry import KeepsCarry

B, T, D, N = 2, 3, 4, 3
X = np.ones((B, T, D), "float32")

# Each wrong value, and what the message says after the argument's name.
UNITS = {"units": (0, "must be a whole number of at least 1, got 0")}
RING = {
    "r_min": ("a", "must be a finite number, got 'a'"),
    "r_max": (1.5, "must satisfy 0 <= r_min < r_max <= 1, got 0.0 and 1.5"),
    "min_phase": (7.0, "must be below max_phase, 6.283185307179586, got 7.0"),
    "max_phase": (np.inf, "must be a finite number above 0, got inf"),
}
CELLS = {
    cells.RTRLCell: UNITS,
    cells.EGRUCell: UNITS,
    cells.ELSTMCell: {**UNITS, "forget_bias": ("x", "must be a finite number, got 'x'")},
    cells.LRUCell: {**UNITS, **RING},
    cells.MinGRUCell: UNITS,
    cells.RTUCell: {
        **UNITS,
        **RING,
        "recurrence": ("quadratic", "must be 'linear' or 'nonlinear', got 'quadratic'"),
        "activation": ("gelu", r"must be one of \['linear', 'relu', 'tanh'\], got 'gelu'"),
    },
}
FLAG = ("no", "must be True or False, got 'no'")
COMMON = dict.fromkeys(("return_sequences", "return_state", "stateful"), FLAG)
BACKWARDS = (True, "must be False, also in Bidirectional: RTRL learns forward in time")
RTRL = {
    "cell": (keras.layers.LSTMCell(3), "must be a keras_rtrl.cells.RTRLCell, got LSTMCell"),
    "gradient": ("bptt", r"must be one of \('rtrl', 'tbptt', 'instant'\), got 'bptt'"),
    "implementation": (2, r"must be one of \('auto', 'tf', 'native'\), got 2"),
    **COMMON,
    "zero_output_for_mask": FLAG,
    **{
        f"{role}_{kind}": ("nonsense", f"must be a keras {kind}, got 'nonsense'")
        for role in ("kernel", "recurrent", "bias")
        for kind in ("initializer", "regularizer", "constraint")
    },
    "trace_dtype": ("float16", r"must be one of \(None, 'float32', 'float64'\), got 'float16'"),
    "go_backwards": BACKWARDS,
}
STACK = {
    "layers": ("ELSTM", "must be a list of layers, got str"),
    **COMMON,
    "go_backwards": BACKWARDS,
    **dict.fromkeys(("residual", "norm", "gate"), FLAG),
}
CALL = {
    "sequences": (X[0], r"must have shape \[batch, time, features\], got \(3, 4\)"),
    "initial_state": ([X, X], r"must be the state \[B, N, m\] alone or \[state, S, r\], got 2 tensors"),
    "mask": (X, r"must have shape \[batch, time\] = \(2, 3\), got \(2, 3, 4\)"),
    "training": ("yes", "must be True, False or None, got 'yes'"),
    "reset": (X[:, 0], r"must have shape \[batch, time\] = \(2, 3\), got \(2, 4\)"),
}
TRAINING = {"training": ("yes", r"must be True(,| or) False.*, got 'yes'")}
CARRY = {
    KeepsCarry.get_carry: TRAINING,
    KeepsCarry.set_carry: {**TRAINING, "values": ([1], "must be a tuple of 3, state, S, r; got 1 values")},
    KeepsCarry.reset_state: {**TRAINING, "streams": ([B], r"must be None, indices below 2 .*, got \[2\]")},
    KeepsCarry.reset_states: {"states": ([1], "must be a tuple of 3, state, S, r; got 1 values")},
    KeepsCarry.carry_bytes: {"batch_size": (0, "must be a whole number of at least 1, got 0")},
    KeepsCarry.get_initial_state: {
        "batch_size": (1.5, "must be a whole number of at least 0, got 1.5"),
        "traces": ("all", "must be True or False, got 'all'"),
    },
}
CARRY[KeepsCarry.initial_carries] = CARRY[KeepsCarry.get_initial_state]
TOOLS = {
    data.stream_chunks: {
        "sequences": (5, "must be an array or a list of arrays, got 5"),
        "targets": (X[:1], "must have one array a sequence: got 1 for 2 sequences"),
        "batch_size": (0, "must be a whole number of at least 1, got 0"),
        "chunk": (2.5, "must be a whole number of at least 1, got 2.5"),
    },
    diagnostics.RTRLDiagnostics: {
        "log_dir": (3, "must be a path, got 3"),
        "data": ([1], "must be the tf.data.Dataset that fit is given, or None, got list"),
        "chunks": (1, "must be a whole number of at least 2, got 1"),
        "every": (0.5, "must be a whole number of at least 1, got 0.5"),
        "worth": (1, "must be True or False, got 1"),
    },
    export.inference_model: {
        "model": (None, "must be a model of .*, got builtins.NoneType"),
        "batch_size": (0, "must be a whole number of at least 1, got 0"),
        "steps": ("1", "must be a whole number of at least 1, got '1'"),
    },
    export.learner: {
        "model": (None, "must be a model of .*, got builtins.NoneType"),
        "optimizer": (3, "must be an optimizer of .* or its name, got 3"),
        "loss": ("nothing", "must be a keras loss, its name or a function, got 'nothing'"),
        "targets": (X, "must be a tf.TensorSpec or None, got an array"),
        "batch_size": (0, "must be a whole number of at least 1, got 0"),
        "steps": ("1", "must be a whole number of at least 1, got '1'"),
        "max_gradient_norm": (0, "must be a finite number above 0.*, got 0"),
        "jit_compile": FLAG,
    },
    export.StatefulModule.save: {"path": ("served.keras", "must be that of a folder, .* got 'served.keras'")},
    export.Learner.save: {"path": ("served.keras", "must be that of a folder, .* got 'served.keras'")},
    testing.check_rtrl_cell: {
        "cell": (cells.ELSTMCell, "must be an instance of keras_rtrl.cells.RTRLCell, got <class"),
        "seed": (-1, "must be a whole number of at least 0, got -1"),
    },
    testing.TwoLayerRTRL: {
        "stack": (layers.ELSTM(2), "must be a keras_rtrl.layers.RTRLStack, got ELSTM"),
        "batch_size": (0, "must be a whole number of at least 1, got 0"),
    },
    testing.TwoLayerRTRL.step: {
        "x": (X, r"must have shape \(2, 4\), got \(2, 3, 4\)"),
        "reset": (X[0, :3, 0] > 0, r"must have shape \(2,\), got \(3,\)"),
    },
    testing.TwoLayerRTRL.gradients: {"cotangent": (X[0], r"must have shape \(2, 3\), got \(3, 4\)")},
    testing.TwoLayerRTRL.traces: {"index": (99, "must be a whole number .*, got 99")},
}
NAMED = (layers.EGRU, layers.ELSTM, layers.LRU, layers.MinGRU, layers.RTU)
WRONG = {
    **CELLS,
    layers.RTRL: RTRL,
    **{layer: CELLS[getattr(cells, f"{layer.__name__}Cell")] for layer in NAMED},  # the others are handed to RTRL
    layers.RTRLStack: STACK,
    layers.RTRL.call: CALL,
    **CARRY,
    **TOOLS,
}
# Made by our own functions, from what these checked; and declarations, which RTRLCell.check reads.
INNER = {export.Learner, export.StatefulModule, export.stock_ops, cells.Parameter, cells.Local}


def arguments(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.items()
    return {name for name, parameter in found if name != "self" and parameter.kind not in kinds}


def own(holder, module):
    """The public functions and classes that a module or class defines."""
    for name, value in vars(holder).items():
        if not name.startswith("_") and callable(value) and value.__module__ == module:
            yield value


def public():
    for module in (cells, export, layers, testing):
        yield from (getattr(module, name) for name in module.__all__)
    for module in (data, diagnostics.callback):
        yield from own(module, module.__name__)
    yield layers.RTRL.call
    for holder in (KeepsCarry, export.Learner, export.StatefulModule, testing.TwoLayerRTRL):
        yield from own(holder, holder.__module__)


@pytest.mark.parametrize(
    "function", [f for f in dict.fromkeys(public()) if f not in INNER], ids=lambda f: f.__qualname__
)
def test_every_argument_has_a_wrong_value(function):
    assert arguments(function) == set(WRONG.get(function, {}))


def stateful():
    layer = layers.ELSTM(N, stateful=True)
    layer(X)
    return layer


def two():
    stack = layers.RTRLStack([layers.ELSTM(N), layers.ELSTM(N)])
    stack.build((None, None, D))
    return testing.TwoLayerRTRL(stack, B)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Arguments that are right, `self` too."""
    built, kept, exact = layers.ELSTM(N), stateful(), two()
    built.build((None, None, D))
    folder = tmp_path_factory.mktemp("sound")
    return {
        **{function: {"units": N} for function, values in WRONG.items() if "units" in values},
        layers.RTRL: {"cell": cells.ELSTMCell(N)},
        layers.RTRLStack: {"layers": [layers.ELSTM(N)]},
        layers.RTRL.call: {"self": built, "sequences": X},
        **{function: {"self": kept} for function in CARRY},
        KeepsCarry.set_carry: {"self": kept, "values": kept.get_carry()},
        KeepsCarry.reset_states: {"self": kept, "states": kept.get_carry()},
        KeepsCarry.get_initial_state: {"self": kept, "batch_size": B},
        KeepsCarry.initial_carries: {"self": kept, "batch_size": B},
        data.stream_chunks: {"sequences": X, "targets": X, "batch_size": B, "chunk": T},
        diagnostics.RTRLDiagnostics: {"log_dir": str(folder)},
        export.inference_model: {"model": keras.Sequential([keras.Input((None, D)), layers.ELSTM(N)])},
        export.learner: {
            "model": keras.Sequential([keras.Input((None, D)), layers.ELSTM(N)]),
            "optimizer": "sgd",
            "loss": "mse",
        },
        export.StatefulModule.save: {"self": MagicMock()},
        export.Learner.save: {"self": MagicMock()},
        testing.check_rtrl_cell: {"cell": cells.ELSTMCell(2)},
        testing.TwoLayerRTRL: {"stack": exact._stack, "batch_size": B},
        testing.TwoLayerRTRL.gradients: {"self": exact},
        testing.TwoLayerRTRL.traces: {"self": exact},
        testing.TwoLayerRTRL.step: {"self": exact, "x": X[:, 0]},
    }


ARRAYS = ("sequences", "targets")
CASES = [(function, name) for function, values in WRONG.items() for name in values]


@pytest.mark.parametrize(("function", "name"), CASES, ids=[f"{f.__qualname__}-{name}" for f, name in CASES])
def test_a_wrong_value_gets_one_clear_error(function, name, sound, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    value, message = WRONG[function][name]
    given = sound[function]
    kept = given["self"].get_carry() if function in CARRY else ()
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.*{message}"):
        function(**{**given, name: value})
    for before, after in zip(kept, given["self"].get_carry() if kept else (), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not list(tmp_path.iterdir())


LONG = "x" * 5000
SIZES = (0, -1, 1.5, "3", None, True, np.nan, np.inf, 2**63, 10**400, [1], {}, object(), LONG, 1j, b"1", X)
NUMBERS = ("1", None, True, np.nan, -np.inf, 10**400, [1.0], {}, object(), LONG, 1j, X)
FLAGS = ("no", None, 0, 1, 2, 1.0, [], [True], "True", object(), LONG, X > 0)
CHOICES = (2, True, "nonsense", [], {}, b"rtrl", LONG, object(), ("rtrl",), 1.5, np.array(["rtrl"]))
FUNCTIONS = (3, 1.5, True, "nonsense", LONG, [], [1], object())
PATHS = (3, None, "", b"x", [], {}, 1.5, True, object())
OBJECTS = (3, "x", {}, object(), LONG, type, X, [None], ["x"])
# What is wrong as any argument of a kind, by the arguments' names; and what some of them may be for all that.
WRONG_BY_KIND = {
    **dict.fromkeys(("units", "batch_size", "steps", "chunk", "chunks", "every", "seed", "index"), SIZES),
    **dict.fromkeys(("forget_bias", "r_min", "r_max", "min_phase", "max_phase", "max_gradient_norm"), NUMBERS),
    **dict.fromkeys(
        (*COMMON, "zero_output_for_mask", "residual", "norm", "gate", "go_backwards", "traces", "worth", "jit_compile"),
        FLAGS,
    ),
    **dict.fromkeys(("recurrence", "activation", "gradient", "implementation", "trace_dtype"), CHOICES),
    **dict.fromkeys((name for name in RTRL if name.split("_")[0] in ("kernel", "recurrent", "bias")), FUNCTIONS),
    **dict.fromkeys(("path", "log_dir"), PATHS),
    **dict.fromkeys(
        ("cell", "layers", "model", "stack", "data", "sequences", "x", "cotangent", "values", "states"), OBJECTS
    ),
    **dict.fromkeys(("mask", "reset", "initial_state", "targets", "optimizer", "loss"), OBJECTS),
    "training": (2, -1, 0.0, "yes", [], [True], {}, object(), LONG, X > 0),
    "streams": (1.5, "x", {}, object(), LONG, [True], [[0]], -1, B),
}
RIGHT = {
    "batch_size": {
        KeepsCarry.get_initial_state: 0,
        KeepsCarry.initial_carries: 0,
        export.inference_model: None,
        export.learner: None,
    },
    "steps": {export.inference_model: None, export.learner: None},
    "max_gradient_norm": {export.learner: None},
    "seed": {testing.check_rtrl_cell: 0},
    "index": {testing.TwoLayerRTRL.traces: 0},
}


@pytest.mark.parametrize(("function", "name"), CASES, ids=[f"{f.__qualname__}-{name}" for f, name in CASES])
def test_wrong_values_of_every_kind(function, name, sound, monkeypatch, tmp_path):
    """None of them is taken, and each message names the argument and is short."""
    monkeypatch.chdir(tmp_path)
    if function in CELLS and function not in (cells.RTRLCell, cells.RTUCell, cells.ELSTMCell):
        pytest.skip("its arguments are those of the others")
    for value in WRONG_BY_KIND[name]:
        right = RIGHT.get(name, {}).get(function, object())
        if value is right or (type(value) is int and value == right) or (value is X and name in ARRAYS):
            continue
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b") as caught:
            function(**{**sound[function], name: value})
        assert len(str(caught.value)) < 1000, name
    assert not list(tmp_path.iterdir())


def stack(units, **options):
    return layers.RTRLStack([layers.ELSTM(units)], **options)


LSTM_ONLY = arguments(keras.layers.LSTM) - arguments(layers.RTRL) - {"units", "activity_regularizer"}


@pytest.mark.parametrize("name", sorted(LSTM_ONLY))
@pytest.mark.parametrize("make", [layers.ELSTM, stack])
def test_arguments_of_keras_lstm_that_are_not_here(make, name):
    with pytest.raises(TypeError, match=rf"(ELSTM|RTRLStack) has no argument {name}, .*: .* \(docs/layers.md"):
        make(N, **{name: 0})


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_dtype_must_be_floating(dtype):
    for make in (layers.ELSTM, stack):
        with pytest.raises(ValueError, match=f"dtype must be floating, .* got '{dtype}'"):
            make(N, dtype=dtype)
