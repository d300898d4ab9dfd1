"""Recurrent Trace Units of Elelimy, White, Bowling and White (2024); rtrl-math.md, section 5."""

import math
from typing import Any

import tensorflow as tf

from keras_rtrl._checks import shown
from keras_rtrl.cells import rotation
from keras_rtrl.cells.initializers import lecun_normal
from keras_rtrl.engine.cell import ByName, Local, Parameter, RTRLCell, State

# f and f' as functions of the pre-activation.
_ACTIVATIONS = {
    "relu": (tf.nn.relu, lambda x: tf.cast(x > 0, x.dtype)),
    "tanh": (tf.tanh, lambda x: 1 - tf.tanh(x) ** 2),
    "linear": (tf.identity, tf.ones_like),
}


class RTUCell(RTRLCell):
    """Recurrent Trace Unit: a rotation by theta, shrunk by r, of two real components a unit.

    `a~ = g a' - p b' + gamma x W1`, `b~ = g b' + p a' + gamma x W2` with `r = exp(-exp(nu))`, `theta = exp(vartheta)`,
    `g = r cos theta`, `p = r sin theta`, `gamma = sqrt(1 - r^2)`. Linear: the state is (a~, b~) and the output f of it.
    Non-linear: the state is (f(a~), f(b~)) and is the output. Output width 2 N.

    Args:
      units: N.
      recurrence: "linear" (the trace for W2 is that for W1 turned by 90 degrees, so one pair is stored) or "nonlinear".
      activation: f, one of "relu", "tanh", "linear".
      r_min, r_max: initial radii r are drawn on the ring between them, 0 <= r_min < r_max <= 1.
      min_phase, max_phase: initial phases theta are uniform on (0, max_phase) if min_phase is 0; else log-uniform
        between the two, so that every octave has as many units. 0 <= min_phase < max_phase.
    """

    gates = ("u1", "u2")
    components = 2

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
    ):
        super().__init__(units)
        if recurrence not in ("linear", "nonlinear"):
            raise ValueError(f"recurrence must be 'linear' or 'nonlinear', got {shown(recurrence)}.")
        if activation not in tuple(_ACTIVATIONS):
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {shown(activation)}.")
        self.recurrence = recurrence
        self.activation = activation
        ring = rotation.checked_ring(r_min, r_max, min_phase, max_phase)
        self.r_min, self.r_max, self.min_phase, self.max_phase = ring
        if recurrence == "linear":
            self.trace_rotations = {"u2": ("u1", ((0.0, -1.0), (1.0, 0.0)))}

    @property
    def native(self) -> str:
        if self.recurrence == "linear":
            return "rtu_linear"
        return "rtu_identity" if self.activation == "linear" else f"rtu_{self.activation}"

    kernel_initializer = staticmethod(lecun_normal)

    def unit_parameters(self) -> tuple[Parameter, ...]:
        def nu(shape, dtype=None):
            u = tf.random.uniform(shape, rotation.EDGE, 1 - rotation.EDGE, tf.as_dtype(dtype or tf.float32))
            return tf.math.log(rotation.rate_on_ring(u, self.r_min, self.r_max))

        shape = (self.units,)
        return (
            Parameter("nu", "recurrent", shape, nu),
            Parameter("vartheta", "recurrent", shape, rotation.phase_initializer(self.min_phase, self.max_phase)),
        )

    def coefficients(self, rho: ByName) -> ByName:
        c = rotation.coefficients(rho)
        # expm1 keeps 1 - r^2 exact near r = 1; the floor keeps the derivative's quotient finite.
        return {**c, "gamma": tf.sqrt(tf.maximum(-tf.math.expm1(-2 * c["rate"]), 1e-12))}

    def phi(self, state: State, u: ByName, c: ByName) -> State:
        pre = self._turn(state, u, c)
        if self.recurrence == "linear":
            return pre
        f, _ = _ACTIVATIONS[self.activation]
        return tuple(f(x) for x in pre)

    def derivatives(self, state: State, u: ByName, c: ByName) -> Local:
        gamma, J = c["gamma"], rotation.jacobian(c)
        d_gamma = c["rate"] * c["r"] ** 2 / gamma
        turned = rotation.turned(state, c)
        a_local = {"u1": (gamma, None), "u2": (None, gamma)}
        v = {
            "nu": (d_gamma * u["u1"] - c["rate"] * turned[0], d_gamma * u["u2"] - c["rate"] * turned[1]),
            "vartheta": rotation.phase_derivative(turned, c),
        }
        if self.recurrence == "linear":
            return Local(J, a_local, v)
        _, slope = _ACTIVATIONS[self.activation]
        s = tuple(slope(x) for x in self._turn(state, u, c))
        return Local(
            J=tuple(tuple(s[i] * entry for entry in row) for i, row in enumerate(J)),
            a={"u1": (s[0] * gamma, None), "u2": (None, s[1] * gamma)},
            v={name: tuple(s[i] * entry for i, entry in enumerate(pair)) for name, pair in v.items()},
        )

    def _turn(self, state, u, c):
        a, b = rotation.turned(state, c)
        return (a + c["gamma"] * u["u1"], b + c["gamma"] * u["u2"])

    def output(self, x: tf.Tensor, state: State, w: ByName) -> tf.Tensor:
        y = tf.concat(state, axis=-1)
        return _ACTIVATIONS[self.activation][0](y) if self.recurrence == "linear" else y

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "recurrence": self.recurrence,
            "activation": self.activation,
            "r_min": self.r_min,
            "r_max": self.r_max,
            "min_phase": self.min_phase,
            "max_phase": self.max_phase,
        }
