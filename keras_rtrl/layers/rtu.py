"""RTU: RTRL of an RTUCell."""

import math
from typing import Any

from keras_rtrl._keras import register
from keras_rtrl.cells import RTUCell
from keras_rtrl.layers.rtrl import NamedRTRL


@register
class RTU(NamedRTRL):
    """Recurrent Trace Units trained by exact RTRL (Elelimy et al., 2024; rtrl-math.md, section 5).

    Output [B, (T,) 2 N].

    Args:
      units: N.
      recurrence: "linear" or "nonlinear".
      activation: "relu", "tanh" or "linear"; of the output if linear, of the state if non-linear.
      r_min, r_max: the initial radii's ring, 0 <= r_min < r_max <= 1.
      min_phase, max_phase: initial phases, in radians: uniform on (0, max_phase) if min_phase is 0; else log-uniform
        between the two, so that every octave has as many units. 0 <= min_phase < max_phase.
      **kwargs: the arguments of `RTRL`.
    """

    def __init__(
        self,
        units: int,
        *,
        recurrence: str = "linear",
        activation: str = "relu",
        r_min: float = 0.0,
        r_max: float = 1.0,
        min_phase: float = 0.0,
        max_phase: float = 2 * math.pi,
        **kwargs: Any,
    ):
        super().__init__(
            RTUCell(
                units,
                recurrence=recurrence,
                activation=activation,
                r_min=r_min,
                r_max=r_max,
                min_phase=min_phase,
                max_phase=max_phase,
            ),
            **kwargs,
        )
