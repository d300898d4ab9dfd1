"""The carry, and the forms in which the engine holds states and local derivatives."""

from typing import NamedTuple

import tensorflow as tf

from keras_rtrl.cells.base import Local, RTRLCell


class Carry(NamedTuple):
    """What goes from one chunk to the next: the state, and the traces where they are carried.

    Attributes:
      state: s [B, N, m].
      S: kernel traces [B, D, G', N, m], G' the gates whose traces are stored; None without traces.
      r: per-unit parameter traces [B, P, N, m]; None without traces.
    """

    state: tf.Tensor
    S: tf.Tensor | None = None
    r: tf.Tensor | None = None


def carry_shapes(cell: RTRLCell, input_dim: int) -> Carry:
    """Shapes of the carry of one stream, without the batch dimension."""
    n, m = cell.units, cell.components
    return Carry((n, m), (input_dim, len(cell.stored_gates), n, m), (len(cell.unit_names), n, m))


def zero_carry(cell: RTRLCell, batch_size, dtype, input_dim: int | None = None) -> Carry:
    """Zero carry of `batch_size` streams; without traces where `input_dim` is None."""
    if input_dim is None:
        return Carry(tf.zeros((batch_size, cell.units, cell.components), dtype))
    return Carry(*(tf.zeros((batch_size, *shape), dtype) for shape in carry_shapes(cell, input_dim)))


def local_derivatives(cell: RTRLCell, state: tuple, u: dict, rho: dict, c: dict) -> Local:
    """J, a and v of `cell` at every leading position, in closed form or else by automatic differentiation.

    Args:
      state: the state before the step, m tensors [..., N].
      u: pre-activations by gate, each [..., N].
      rho: per-unit parameters by name, each [N].
      c: the cell's coefficients of rho.
    """
    local = cell.derivatives(state, u, c)
    return autodiff_derivatives(cell, state, u, rho) if local is None else local


def autodiff_derivatives(cell: RTRLCell, state: tuple, u: dict, rho: dict) -> Local:
    """J, a and v by automatic differentiation of `cell.phi`."""
    # Every position needs a derivative of its own, so the shared parameters are spread out first.
    spread = {name: tf.broadcast_to(value, tf.shape(state[0])) for name, value in rho.items()}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((state, u, spread))
        new = cell.phi(state, u, cell.coefficients(spread))
    by_component = [tape.gradient(s, (state, u, spread)) for s in new]
    return Local(
        J=tuple(tuple(d_state) for d_state, _, _ in by_component),
        a={gate: tuple(d_u[gate] for _, d_u, _ in by_component) for gate in u},
        v={name: tuple(d_rho[name] for _, _, d_rho in by_component) for name in rho},
    )


# Algebra of m x m blocks of tensors [..., N]; m is 1 or 2 and None stands for zero.


def times(factor, value):
    """factor * value, 0 for a factor of 0 whatever the value.

    With it what a reset or a cotangent of 0 has cut off contributes nothing, also where it is NaN or infinite.
    """
    if tf.is_tensor(factor) and tf.is_tensor(value):
        return tf.math.multiply_no_nan(value, factor)
    return factor * value


def _is_zero(entry):
    return entry is None or (isinstance(entry, (int, float)) and entry == 0)


def dot(factors, values):
    """Sum of `times` over two equally long sequences without the zeros, None or numbers; None where all are zero."""
    terms = [times(x, y) for x, y in zip(factors, values, strict=True) if not (_is_zero(x) or _is_zero(y))]
    return sum(terms[1:], terms[0]) if terms else None


def matvec(matrix, vector):
    """matrix @ vector, the matrix's entries being the factors."""
    return tuple(dot(row, vector) for row in matrix)


def matvec_transposed(matrix, vector):
    """matrix' @ vector, the vector's entries being the factors."""
    return tuple(dot(vector, column) for column in zip(*matrix, strict=True))


def matmul(left, right):
    """left @ right, the entries of `left` being the factors."""
    columns = [matvec(left, column) for column in zip(*right, strict=True)]
    return tuple(zip(*columns, strict=True))


def kept(k, block):
    """`block` (nested tuples) where k is 1 and zeros where k is 0, also for NaN and inf; k None: all of it."""
    return block if k is None else tf.nest.map_structure(lambda entry: times(k, entry), block)


def dense(block, like):
    """`block` (nested tuples) with every entry broadcast to the shape of `like`, zeros for None."""
    if isinstance(block, tuple):
        return tuple(dense(entry, like) for entry in block)
    return tf.zeros_like(like) if block is None else tf.broadcast_to(block, tf.shape(like))
