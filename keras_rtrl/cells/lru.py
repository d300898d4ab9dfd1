"""The Linear Recurrent Unit trained online (Orvieto et al. 2023; Zucchet et al. 2023); rtrl-math.md, section 6."""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from keras_rtrl.cells import rotation
from keras_rtrl.cells.initializers import lecun_normal
from keras_rtrl.engine.blocks import product
from keras_rtrl.engine.cell import ByName, Local, Parameter, RTRLCell, State


class LRUCell(RTRLCell):
    """Linear Recurrent Unit: a complex state turned by lambda, and a linear read-out of it and of the input.

    `h = lambda h' + exp(gamma_log) (x B)`, `lambda = exp(-exp(nu) + i exp(vartheta))`, output `Re(h C) + x D` of width
    N. B [D, N] and C [N, N] are complex, held as real and imaginary parts; D [D, N] is real. The state is (Re h, Im h).
    gamma_log starts at log sqrt(1 - |lambda|^2) of the same unit.

    Args:
      units: N.
      r_min, r_max: initial |lambda| are drawn on the ring between them, 0 <= r_min < r_max <= 1.
      min_phase, max_phase: initial phases are uniform on (0, max_phase) if min_phase is 0; else log-uniform
        between the two, so that every octave has as many units. 0 <= min_phase < max_phase.
    """

    gates = ("u1", "u2")  # x Re B, x Im B
    components = 2
    trace_rotations = MappingProxyType({"u2": ("u1", ((0.0, -1.0), (1.0, 0.0)))})

    def __init__(
        self,
        units: int,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        min_phase: float = 0.0,
        max_phase: float = 2 * math.pi,
    ):
        super().__init__(units)
        ring = rotation.checked_ring(r_min, r_max, min_phase, max_phase)
        self.r_min, self.r_max, self.min_phase, self.max_phase = ring

    @staticmethod
    def kernel_initializer(shape: Sequence[int], dtype: tf.DType | str | None = None) -> tf.Tensor:
        # the variance of |B| is shared by its two parts
        return lecun_normal(shape, dtype) * 2**-0.5

    def unit_parameters(self) -> tuple[Parameter, ...]:
        seed = []

        def rate(shape, dtype):
            """-log |lambda|, the same for both parameters that start from it, also if they are made in graphs."""
            if not seed:
                with tf.init_scope():
                    seed.extend(tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32).numpy())
            edge = rotation.EDGE
            u = tf.random.stateless_uniform(shape, seed, edge, 1 - edge, tf.as_dtype(dtype or tf.float32))
            return rotation.rate_on_ring(u, self.r_min, self.r_max)

        def nu(shape, dtype=None):
            return tf.math.log(rate(shape, dtype))

        def gamma_log(shape, dtype=None):
            return 0.5 * tf.math.log(-tf.math.expm1(-2 * rate(shape, dtype)))

        vartheta = rotation.phase_initializer(self.min_phase, self.max_phase)
        made = {"nu": nu, "vartheta": vartheta, "gamma_log": gamma_log}
        return tuple(Parameter(name, "recurrent", (self.units,), initial) for name, initial in made.items())

    def coefficients(self, rho: ByName) -> ByName:
        return {**rotation.coefficients(rho), "gamma": tf.exp(rho["gamma_log"])}

    def phi(self, state: State, u: ByName, c: ByName) -> State:
        turned = rotation.turned(state, c)
        return (turned[0] + c["gamma"] * u["u1"], turned[1] + c["gamma"] * u["u2"])

    def derivatives(self, state: State, u: ByName, c: ByName) -> Local:
        turned, gamma = rotation.turned(state, c), c["gamma"]
        return Local(
            J=rotation.jacobian(c),
            a={"u1": (gamma, None), "u2": (None, gamma)},
            v={
                "nu": (-c["rate"] * turned[0], -c["rate"] * turned[1]),
                "vartheta": rotation.phase_derivative(turned, c),
                "gamma_log": (gamma * u["u1"], gamma * u["u2"]),
            },
        )

    @property
    def output_size(self) -> int:
        return self.units

    def output_parameters(self, input_dim: int) -> tuple[Parameter, ...]:
        n = self.units

        def part(shape, dtype=None):  # Glorot: variance 1 / N of a complex number
            return tf.random.normal(shape, 0.0, (2 * n) ** -0.5, tf.as_dtype(dtype or tf.float32))

        return (
            Parameter("C_re", "kernel", (n, n), part),
            Parameter("C_im", "kernel", (n, n), part),
            Parameter("D", "kernel", (input_dim, n), lecun_normal),
        )

    def output(self, x: tf.Tensor, state: State, w: ByName) -> tf.Tensor:
        return product(state[0], w["C_re"]) - product(state[1], w["C_im"]) + product(x, w["D"])

    def get_config(self) -> dict[str, Any]:
        ring = {name: getattr(self, name) for name in ("r_min", "r_max", "min_phase", "max_phase")}
        return {**super().get_config(), **ring}
