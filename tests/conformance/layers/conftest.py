"""The one list of layers that the gauntlet runs: add a layer here and every behaviour is tested for it.

Each behaviour runs for every layer once over the two Keras lines: (layer, behaviour) falls to one of the lines, and to
the native op or to plain TensorFlow, in turn. With `--full` each line runs every layer with both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from keras_rtrl import native
from keras_rtrl._keras import LEGACY, keras, register
from keras_rtrl.cells import ELSTMCell, RTRLCell, RTUCell
from keras_rtrl.layers import EGRU, ELSTM, LRU, RTRL, RTU, MinGRU, RTRLStack

# TF-Agents runs on tf-keras only.
collect_ignore = [] if LEGACY else ["test_networks.py"]

N, D = 3, 4


@register
class LeakyCell(RTRLCell):
    """A cell that gives phi only."""

    gates = ("u",)

    def phi(self, state, u, c):
        return (0.9 * state[0] + 0.5 * u["u"] * state[0] ** 2 + u["u"],)


class Entry(NamedTuple):
    """A layer of the list.

    Attributes:
      make: the layer, from `implementation` and any of the arguments that all layers have.
      cells: its cells; the native op is tested where it runs one of them.
      width: of its output.
      carry: shapes of its carry for one stream of inputs of width D, without the batch dimension.
    """

    make: Callable[..., Any]
    cells: tuple
    width: int
    carry: tuple


def one(make, width, *carry):
    """Entry of a layer of one cell."""
    return Entry(make, (make().cell,), width, carry)


def stack(implementation="auto", dtype=None, **kw):
    common = {"implementation": implementation, "dtype": dtype}
    layers = [ELSTM(N, **common), keras.layers.Dense(5, activation="tanh", dtype=dtype), RTU(N, **common)]
    return RTRLStack(layers, residual=True, norm=True, gate=True, dtype=dtype, **kw)


LAYERS = {
    "egru": one(lambda **kw: EGRU(N, **kw), N, (N, 1), (D, 3, N, 1), (6, N, 1)),
    "elstm": one(lambda **kw: ELSTM(N, **kw), N, (N, 1), (D, 2, N, 1), (4, N, 1)),
    "lru": one(lambda **kw: LRU(N, r_min=0.5, **kw), N, (N, 2), (D, 1, N, 2), (3, N, 2)),
    "mingru": one(lambda **kw: MinGRU(N, **kw), N, (N, 1), (D, 2, N, 1), (2, N, 1)),
    "rtrl-own-cell": one(lambda **kw: RTRL(LeakyCell(N), **kw), N, (N, 1), (D, 1, N, 1), (0, N, 1)),
    "rtu-linear": one(lambda **kw: RTU(N, r_min=0.5, **kw), 2 * N, (N, 2), (D, 1, N, 2), (2, N, 2)),
    "rtu-nonlinear": one(
        lambda **kw: RTU(N, recurrence="nonlinear", activation="tanh", **kw), 2 * N, (N, 2), (D, 2, N, 2), (2, N, 2)
    ),
    "stack": Entry(
        stack,
        (ELSTMCell(N), RTUCell(N)),
        5,
        ((N, 1), (D, 2, N, 1), (4, N, 1), (N, 2), (5, 1, N, 2), (2, N, 2)),
    ),
}


class Case(NamedTuple):
    """A layer of the list as one behaviour gets it."""

    name: str
    entry: Entry
    implementation: str

    def make(self, **options):
        return self.entry.make(**{"implementation": self.implementation, **options})

    @property
    def width(self):
        return self.entry.width

    @property
    def carry(self):
        return self.entry.carry


def implementations(entry):
    """What can run the layer here. "auto" is the native op: unlike "native" it lets XLA have its own."""
    runs_natively = any(native.choose("auto", cell, "float32") for cell in entry.cells)
    return ("auto", "tf") if runs_natively else ("tf",)


def cases(behaviour, full, only_this_line=False, line=LEGACY):
    """The cases of a behaviour under one Keras line.

    Args:
      behaviour: its number.
      full: whether the line gets every layer with every implementation.
      only_this_line: whether the other line has no such behaviour.
      line: 0 for Keras 3, 1 for tf-keras; this process' own.
    """
    chosen = []
    for i, (name, entry) in enumerate(LAYERS.items()):
        possible, turn = implementations(entry), i + behaviour
        if full:
            chosen += [Case(name, entry, implementation) for implementation in possible]
        elif only_this_line or turn % 2 == line:
            chosen.append(Case(name, entry, possible[turn // 2 % len(possible)]))
    return chosen


def pytest_generate_tests(metafunc):
    names = [name for name in vars(metafunc.module) if name.startswith("test_")]
    behaviour = names.index(metafunc.function.__name__)
    if "case" in metafunc.fixturenames:
        only_this_line = metafunc.module.__name__.endswith("test_networks")
        found = cases(behaviour, metafunc.config.getoption("--full"), only_this_line)
        metafunc.parametrize("case", found, ids=[f"{c.name}-{c.implementation}" for c in found])


@pytest.fixture(scope="session")
def layers():
    return LAYERS


@pytest.fixture(scope="session")
def cases_of(request):
    """As `cases`: for a behaviour that takes all layers at once."""

    asked = request.config.getoption("--full")
    return lambda behaviour, full=asked, **options: cases(behaviour, full, **options)
