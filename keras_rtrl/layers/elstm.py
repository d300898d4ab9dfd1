"""ELSTM: RTRL of an ELSTMCell."""

from typing import Any

from keras_rtrl._keras import register
from keras_rtrl.cells import ELSTMCell
from keras_rtrl.layers.rtrl import NamedRTRL


@register
class ELSTM(NamedRTRL):
    """Element-wise LSTM trained by exact RTRL (Irie et al., 2024; rtrl-math.md, section 4). Output [B, (T,) N].

    Args:
      units: N.
      forget_bias: added to the forget gate's initial bias; 3 to 8 for dependencies of hundreds of steps.
      **kwargs: the arguments of `RTRL`.
    """

    def __init__(self, units: int, *, forget_bias: float = 0.0, **kwargs: Any):
        super().__init__(ELSTMCell(units, forget_bias=forget_bias), **kwargs)
