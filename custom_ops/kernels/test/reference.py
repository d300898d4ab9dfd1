"""What the kernels should compute, in float64 numpy: docs/rtrl-math.md, section 2, step by step.

Independent of the kernels' closed forms: the local derivatives come from a cell's definition alone, by complex steps,
which are exact to the last digits. Arrays [..., N, m], gates and parameters as lists.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STEP = 1e-30


class Cell(NamedTuple):
    """G gates, the first G' with stored traces, m components, P parameters; `phi(s, u, rho)` is the next state."""

    gates: int
    stored: int
    components: int
    parameters: int
    phi: Callable
    # The traces of the gates beyond those stored: a matrix times the first gate's.
    rotations: tuple = ()


def _elstm(s, u, rho):
    w_f, w_z, b_f, b_z = rho
    f = 1 / (1 + np.exp(-(u[0] + w_f * s[0] + b_f)))
    return [f * s[0] + (1 - f) * np.tanh(u[1] + w_z * s[0] + b_z)]


def _rtu(activation):
    def phi(s, u, rho):
        rate, theta = np.exp(rho[0]), np.exp(rho[1])
        r = np.exp(-rate)
        g, p, gamma = r * np.cos(theta), r * np.sin(theta), np.sqrt(-np.expm1(-2 * rate))
        return [
            activation(g * s[0] - p * s[1] + gamma * u[0]),
            activation(g * s[1] + p * s[0] + gamma * u[1]),
        ]

    return phi


def _identity(x):
    return x


def _relu(x):
    return np.where(x.real <= 0, 0, x)


# In the order of the kernels' list.
CELLS = {
    "elstm": Cell(2, 2, 1, 4, _elstm),
    "rtu_linear": Cell(2, 1, 2, 2, _rtu(_identity), (np.array([[0.0, -1.0], [1.0, 0.0]]),)),
    "rtu_relu": Cell(2, 2, 2, 2, _rtu(_relu)),
    "rtu_tanh": Cell(2, 2, 2, 2, _rtu(np.tanh)),
    "rtu_identity": Cell(2, 2, 2, 2, _rtu(_identity)),
}


def _components(array, axis=-1):
    return list(np.moveaxis(array, axis, 0))


def phi(cell, s, u, rho):
    """Next state [B, N, m] of s [B, N, m], u [B, G, N], rho [P, N]."""
    return np.stack(cell.phi(_components(s), _components(u, 1), list(rho)), axis=-1).real


def local(cell, s, u, rho):
    """J [B, N, m, m], a [B, G, N, m], v [B, P, N, m]."""

    def derivatives(arguments, which):
        columns = []
        for i in range(len(arguments[which])):
            moved = [list(argument) for argument in arguments]
            moved[which][i] = moved[which][i] + 1j * STEP
            columns.append(np.stack(np.broadcast_arrays(*cell.phi(*moved)), axis=-1).imag / STEP)
        return columns

    arguments = _components(s), _components(u, 1), list(rho)
    J, a, v = (derivatives(arguments, which) for which in range(3))
    return np.stack(J, axis=-1), np.stack(a, axis=1), np.stack(v, axis=1)


def expand(cell, S):
    """Traces of every gate [..., G, N, m] from those stored [..., G', N, m]."""
    rotated = [np.einsum("ij,...nj->...ni", rotation, S[..., 0, :, :]) for rotation in cell.rotations]
    return np.concatenate([S, *(gate[..., None, :, :] for gate in rotated)], axis=-3)


def times(factor, value):
    """factor * value, and 0 if the factor is 0, for any value."""
    return factor * np.where(factor != 0, value, 0.0)


def contract(cell, e, S, r):
    """sum_b e . S [D, G, N] and sum_b e . r [P, N]."""
    return np.sum(times(e[:, None, None], expand(cell, S)), (0, -1)), np.sum(times(e[:, None], r), (0, -1))


class Chunk:
    """Every quantity of a chunk.

    Args:
      u [B, T, G, N], rho [P, N], state0 [B, N, m], reset and mask [B, T] bool or None.
    """

    def __init__(self, cell, u, rho, state0, reset, mask):
        self._cell = cell
        self._keep = np.ones(u.shape[:2], bool) if reset is None else ~reset
        self._mask = np.ones(u.shape[:2], bool) if mask is None else mask
        self._J, self._a, self._v, states = [], [], [], []
        state = state0
        for t in range(u.shape[1]):
            k = self._keep[:, t]
            state = np.where(k[:, None, None], state, 0.0)
            J, a, v = local(cell, state, u[:, t], rho)
            new = phi(cell, state, u[:, t], rho)
            if mask is not None:
                take = mask[:, t, None, None]
                new = np.where(take, new, state)
                J = np.where(take[..., None], J, np.eye(cell.components))
                a, v = (np.where(take[..., None], value, 0.0) for value in (a, v))
            self._J.append(np.where(k[:, None, None, None], J, 0.0))
            self._a.append(a)
            self._v.append(v)
            states.append(new)
            state = new
        self.last = state
        self.states = np.reshape(np.stack(states, axis=1) if states else [], (*u.shape[:2], *state.shape[1:]))

    def adjoint(self, e, instant):
        """du [B, T, G, N], d_rho [B, P, N], start [B, N, m] and used [B, T] of the cotangents e [B, T, N, m]."""
        carried, du = np.zeros_like(self.last), np.zeros((*e.shape[:2], self._cell.gates, e.shape[2]))
        d_rho, used = np.zeros((len(e), self._cell.parameters, e.shape[2])), np.zeros(e.shape[:2], bool)
        for t in reversed(range(e.shape[1])):
            adjoint = e[:, t] + carried
            used[:, t] = (adjoint != 0).any((1, 2)) & self._mask[:, t]
            du[:, t] = np.sum(times(adjoint[:, None], self._a[t]), -1)
            d_rho = d_rho + np.sum(times(adjoint[:, None], self._v[t]), -1)
            carried = np.sum(times(adjoint[..., None], self._J[t]), -2) * (not instant)
            carried = np.where(self._keep[:, t, None, None], carried, 0.0)
        return du, d_rho, carried, used

    def traces(self, x, S, r):
        """S [B, D, G', N, m] and r [B, P, N, m] after the chunk's inputs x [B, T, D]."""
        for J, a, v, x_t in zip(self._J, self._a, self._v, np.moveaxis(x, 1, 0), strict=True):
            driven = a[:, : self._cell.stored]
            S = np.sum(times(J[:, None, None], S[..., None, :]), -1) + x_t[:, :, None, None, None] * driven[:, None]
            r = np.sum(times(J[:, None], r[..., None, :]), -1) + v
        return S, r

    def local(self):
        """`local` of the first step, as the streaming step hands it over: [B, m m + G' m + P m, N]."""

        def rows(array):  # [B, ..., N, i, ...] with N last
            return array.reshape(array.shape[0], np.prod(array.shape[1:-1], dtype=int), array.shape[-1])

        J = rows(np.moveaxis(self._J[0], 1, -1))
        a, v = (rows(np.moveaxis(value, -2, -1)) for value in (self._a[0][:, : self._cell.stored], self._v[0]))
        return np.concatenate([J, a, v], axis=1)
