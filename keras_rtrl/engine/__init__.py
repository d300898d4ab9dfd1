"""Exact RTRL of a cell: step by step, a chunk at once, streaming. TensorFlow only; knows no cell by name."""

from keras_rtrl.engine import chunked, native, reference, streaming
from keras_rtrl.engine.carry import Carry, carry_shapes, zero_carry
from keras_rtrl.engine.cell import autodiff_derivatives

__all__ = ["Carry", "autodiff_derivatives", "carry_shapes", "chunked", "native", "reference", "streaming", "zero_carry"]
