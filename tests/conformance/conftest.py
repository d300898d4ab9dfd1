"""The one list of cells that the gauntlet runs: add a cell here and it is tested."""

import pytest

from keras_rtrl.cells import EGRUCell, ELSTMCell, LRUCell, MinGRUCell, RTRLCell, RTUCell


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
# Variants of the above, and the least cell there can be: proved eagerly.
VARIANTS = {
    "elstm-forget-bias": lambda: ELSTMCell(3, forget_bias=4.0),
    "elstm-autodiff": lambda: AutodiffELSTMCell(3),
    "rtu-linear-relu": lambda: RTUCell(3),
    "rtu-nonlinear-relu": lambda: RTUCell(3, recurrence="nonlinear"),
    "leaky": lambda: LeakyCell(3),
}


@pytest.fixture(params=CELLS)
def cell(request):
    return CELLS[request.param]()


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]()
