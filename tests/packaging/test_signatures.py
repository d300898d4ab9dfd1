"""Every public signature says what it takes and gives, and takes options by name."""

import importlib
import inspect
import types

import keras_rtrl
from keras_rtrl._keras import LEGACY

MODULES = ["keras_rtrl"]
if LEGACY:  # TF-Agents runs on tf-keras only
    MODULES += [f"keras_rtrl.{name}" for name in ("agents", "distributed", "drivers", "environments", "networks")]

# How many arguments may be given by position.
OF_FUNCTION, OF_METHOD = 2, 3
MORE = {
    "call": 5,  # in the order of keras.layers.RNN.call, then reset
    "compute_output_spec": 5,  # the same
    "unroll": 4,  # what a call works on: inputs, carries, reset, mask
    "recur": 5,  # the same, and whether traces are wanted
    # in the order of TF-Agents' own
    **{f"{name}Agent.__init__": 4 for name in ("R2AC", "RTRLPPO", "StreamAC", "TDLambda")},
    "RolloutDriver.__init__": 3,
}
OF_ARRAYS = "keras_rtrl.engine"  # its functions take arrays in the order of the formulas


def exported(module):
    """(name, function, number of arguments that Python gives) of what a module exports, and of the modules in it."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            yield from exported(value)
        elif inspect.isclass(value):
            yield from methods(value)
        elif callable(value):
            yield name, value, 0


def methods(kind):
    """The same of a class, and of its bases if they are ours."""
    for holder in kind.__mro__:
        if not holder.__module__.startswith("keras_rtrl"):
            continue
        for name, value in vars(holder).items():
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            value = inspect.getattr_static(kind, name)
            bound = 0 if isinstance(value, staticmethod) else 1
            value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(value) and value.__module__.startswith("keras_rtrl"):
                yield f"{kind.__name__}.{name}", value, bound


def signatures():
    """(name, function, its signature, its parameters without those that Python gives)."""
    for module in MODULES:
        for name, function, bound in exported(importlib.import_module(module)):
            signature = inspect.signature(function)
            yield name, function, signature, list(signature.parameters.values())[bound:]


def test_what_is_looked_at():
    names = {"RTRL.__init__", "RTRL.call", "ELSTMCell.phi", "inference_model", "RTRL.trace_dtype", "RTRL.get_carry"}
    if LEGACY:
        names |= {"R2ACAgent.__init__", "RolloutDriver.run", "make", "Fleet.take", "PPOConfig.__init__"}
    found = [(name, function) for name, function, *_ in signatures()]
    assert names <= {name for name, _ in found}
    assert {keras_rtrl.native.info, keras_rtrl.engine.streaming.forward} <= {function for _, function in found}


def test_every_public_signature_is_annotated():
    missing = []
    for name, _, signature, parameters in signatures():
        bare = [parameter.name for parameter in parameters if parameter.annotation is parameter.empty]
        if signature.return_annotation is signature.empty and not name.endswith("__init__"):
            bare.append("what it returns")
        missing += [f"{name}: {', '.join(bare)}"] if bare else []
    assert not missing


def test_options_are_given_by_name():
    many = []
    for name, function, _, parameters in signatures():
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        method = "." in name and not name.endswith("__init__")
        allowed = MORE.get(name, MORE.get(name.rpartition(".")[2], OF_METHOD if method else OF_FUNCTION))
        if len(positional) > allowed and not function.__module__.startswith(OF_ARRAYS):
            many.append(f"{name}: {', '.join(positional)}")
    assert not many
