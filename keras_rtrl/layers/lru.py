"""LRU: RTRL of an LRUCell."""

import math
from typing import Any

from keras_rtrl._keras import register
from keras_rtrl.cells import LRUCell
from keras_rtrl.layers.rtrl import NamedRTRL


@register
class LRU(NamedRTRL):
    """Linear Recurrent Units trained by exact RTRL (Zucchet et al., 2023; rtrl-math.md, section 6).

    Output [B, (T,) N].

    Args:
      units: N.
      r_min, r_max: the initial radii's ring, 0 <= r_min < r_max <= 1.
      max_phase: initial phases are uniform on (0, max_phase), radians.
      **kwargs: the arguments of `RTRL`.
    """

    def __init__(
        self, units: int, *, r_min: float = 0.0, r_max: float = 1.0, max_phase: float = 2 * math.pi, **kwargs: Any
    ):
        super().__init__(LRUCell(units, r_min=r_min, r_max=r_max, max_phase=max_phase), **kwargs)
