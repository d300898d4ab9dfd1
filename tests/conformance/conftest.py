"""The one list of cells that the gauntlet runs: add a cell here and it is tested."""

import pytest

from keras_rtrl.cells import EGRUCell, ELSTMCell, LRUCell, MinGRUCell, RTRLCell, RTUCell
from keras_rtrl.testing import proofs


class AutodiffELSTMCell(ELSTMCell):
    """A cell that gives phi only."""

    def derivatives(self, state, u, c):
        return None


class LeakyCell(RTRLCell):
    """The least a cell can be: one gate, no per-unit parameter, phi only."""

    gates = ("u",)

    def phi(self, state, u, c):
        return (0.9 * state[0] + 0.5 * u["u"] * state[0] ** 2 + u["u"],)


CELLS = {
    "egru": lambda: EGRUCell(3),
    "elstm": lambda: ELSTMCell(3),
    "lru": lambda: LRUCell(3, r_min=0.9),
    "mingru": lambda: MinGRUCell(3),
    "rtu-linear": lambda: RTUCell(3, activation="tanh", r_min=0.9),
    "rtu-nonlinear": lambda: RTUCell(3, recurrence="nonlinear", activation="tanh"),
}
# Proved whole under XLA; of the others chunks are. --full proves all.
XLA_WHOLE = ("rtu-nonlinear",)
# Variants of the above, and the least cell there can be: proved eagerly.
VARIANTS = {
    "elstm-forget-bias": lambda: ELSTMCell(3, forget_bias=4.0),
    "elstm-autodiff": lambda: AutodiffELSTMCell(3),
    "rtu-linear-relu": lambda: RTUCell(3),
    "rtu-nonlinear-relu": lambda: RTUCell(3, recurrence="nonlinear"),
    "leaky": lambda: LeakyCell(3),
}


@pytest.fixture
def cell(request):
    return CELLS[request.param]()


@pytest.fixture
def variant(request):
    return VARIANTS[request.param]()


def names_of(makers, config):
    """Those to run here. With the native op off: those that it would run, since the others know no op."""
    if config.getoption("--implementation") == "auto":
        return list(makers)
    return [name for name, make in makers.items() if make().native]


def pytest_generate_tests(metafunc):
    if "proof" not in metafunc.fixturenames:
        for fixture, makers in (("cell", CELLS), ("variant", VARIANTS)):
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, names_of(makers, metafunc.config), indirect=True)
        return
    full = metafunc.config.getoption("--full")
    cases = [
        (name, proof, mode)
        for name in names_of(CELLS, metafunc.config)
        for proof in proofs.PROOFS
        for mode in ("graph", "xla")  # eagerly, check_rtrl_cell runs them
        if full or mode == "graph" or name in XLA_WHOLE or proof is proofs.check_chunk
    ]
    ids = [f"{name}-{proof.__name__}-{mode}" for name, proof, mode in cases]
    metafunc.parametrize(("cell", "proof", "mode"), cases, ids=ids, indirect=["cell"])
