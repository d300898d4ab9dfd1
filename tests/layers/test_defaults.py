"""Defaults that models rely on without naming them, and the names that saved models hold."""

import inspect
import math

import pytest

from keras_rtrl import cells, layers
from keras_rtrl._keras import keras

RING = {"r_min": 0.0, "r_max": 1.0, "min_phase": 0.0, "max_phase": 2 * math.pi}
KINDS = {"recurrence": "linear", "activation": "relu"}
CELLS = {
    "EGRU": {},
    "ELSTM": {"forget_bias": 0.0},
    "LRU": RING,
    "MinGRU": {},
    "RTU": {**KINDS, **RING},
}
CALLS = {"return_sequences": False, "return_state": False, "stateful": False, "go_backwards": False}


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", CELLS)
def test_a_cells_and_its_layers_are_the_same(name):
    assert defaults(getattr(cells, f"{name}Cell")) == CELLS[name]
    assert defaults(getattr(layers, name)) == CELLS[name]


def test_layers():
    given = {name: value for name, value in defaults(layers.RTRL).items() if value is not None}
    assert given == {**CALLS, "gradient": "rtrl", "implementation": "auto", "zero_output_for_mask": False}
    assert defaults(layers.RTRLStack) == {**CALLS, "residual": False, "norm": False, "gate": False}


@pytest.mark.parametrize("name", [*CELLS, "RTRL", "RTRLStack"])
def test_saved_models_name_the_package(name):
    """By another name a file written before could not be loaded."""
    assert keras.saving.get_registered_name(getattr(layers, name)) == f"keras_rtrl>{name}"
