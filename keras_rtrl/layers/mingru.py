"""MinGRU: RTRL of a MinGRUCell."""

from typing import Any

from keras_rtrl._keras import register
from keras_rtrl.cells import MinGRUCell
from keras_rtrl.layers.rtrl import NamedRTRL


@register
class MinGRU(NamedRTRL):
    """Minimal GRU trained by exact RTRL (Feng et al., 2024; equations: `MinGRUCell`). Output [B, (T,) N].

    Args:
      units: N.
      **kwargs: the arguments of `RTRL`.
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(MinGRUCell(units), **kwargs)
