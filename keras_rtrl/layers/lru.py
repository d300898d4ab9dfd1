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
      min_phase, max_phase: initial phases, in radians: uniform on (0, max_phase) if min_phase is 0; else log-uniform
        between the two, so that every octave has as many units. 0 <= min_phase < max_phase.
      **kwargs: the arguments of `RTRL`.
    """

    def __init__(
        self,
        units: int,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        min_phase: float = 0.0,
        max_phase: float = 2 * math.pi,
        **kwargs: Any,
    ):
        cell = LRUCell(units, r_min=r_min, r_max=r_max, min_phase=min_phase, max_phase=max_phase)
        super().__init__(cell, **kwargs)
