"""EGRU: RTRL of an EGRUCell."""

from typing import Any

from keras_rtrl._keras import register
from keras_rtrl.cells import EGRUCell
from keras_rtrl.layers.rtrl import NamedRTRL


@register
class EGRU(NamedRTRL):
    """GRU with diagonal recurrent weights trained by exact RTRL (equations: `EGRUCell`). Output [B, (T,) N].

    Args:
      units: N.
      **kwargs: the arguments of `RTRL`.
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(EGRUCell(units), **kwargs)
