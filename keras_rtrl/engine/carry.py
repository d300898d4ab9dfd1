"""The carry, and the forms in which the engine holds states and local derivatives."""

from typing import NamedTuple

import tensorflow as tf

from keras_rtrl.engine.cell import RTRLCell


class Carry(NamedTuple):
    """What goes from one chunk to the next: the state, and the traces if they are carried.

    A nest: tf.nest sees the tensors that are there, one or three.

    Attributes:
      state: s [B, N, m].
      S: kernel traces [B, D, G', N, m], G' the gates whose traces are stored; () without traces.
      r: per-unit parameter traces [B, P, N, m]; () without traces.
    """

    state: tf.Tensor
    S: tf.Tensor | tuple = ()
    r: tf.Tensor | tuple = ()

    @property
    def has_traces(self) -> bool:
        return not isinstance(self.S, tuple)

    def without_traces(self) -> "Carry":
        return Carry(self.state)


def carry_shapes(cell: RTRLCell, input_dim: int) -> Carry:
    """Shapes of the carry of one stream, without the batch dimension."""
    n, m = cell.units, cell.components
    return Carry((n, m), (input_dim, len(cell.stored_gates), n, m), (len(cell.unit_names), n, m))


def zero_carry(
    cell: RTRLCell, batch_size: int | tf.Tensor, dtype: tf.DType | str, input_dim: int | None = None
) -> Carry:
    """Zero carry of `batch_size` streams; without traces if `input_dim` is None."""
    if input_dim is None:
        return Carry(tf.zeros((batch_size, cell.units, cell.components), dtype))
    return Carry(*(tf.zeros((batch_size, *shape), dtype) for shape in carry_shapes(cell, input_dim)))
