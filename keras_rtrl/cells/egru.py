"""eGRU, the GRU of Cho et al. (2014) with diagonal recurrent weights, as IndRNN has them (Li et al. 2018)."""

import tensorflow as tf

from keras_rtrl.cells.initializers import lecun_normal, normal, zeros
from keras_rtrl.engine.cell import ByName, Local, Parameter, RTRLCell, State


class EGRUCell(RTRLCell):
    """Element-wise GRU. The state h is the output, of width N.

    `z = sigmoid(x Z + w_z h' + b_z)`, `r = sigmoid(x R + w_r h' + b_r)`, `g = tanh(x H + w_h r h' + b_h)`,
    `h = z h' + (1 - z) g` (h' the previous h; z keeps, as in Cho et al. and `keras.layers.GRU`).

    Each w is one number a unit, so the reset gate r acts before and after the recurrent weight alike: w (r h') =
    r (w h'). The two forms of the GRU (arXiv 1406.1078, v3 and v1; `reset_after` of `keras.layers.GRU`) are one here;
    they would differ by a second, recurrent bias inside r's product, which this cell does not have. With W the diagonal
    matrices of w it is `keras.layers.GRU`, gates in the same order. It is not the event-based GRU that shares the name.

    Derivatives (rtrl-math.md, section 1): `a_z = (h' - g) z (1 - z)`, `a_h = (1 - z) (1 - g^2)`,
    `a_r = a_h w_h h' r (1 - r)`, `J = z + w_z a_z + w_r a_r + w_h r a_h`; v: `w_z -> a_z h'`, `w_r -> a_r h'`,
    `w_h -> a_h r h'`, `b -> a`.

    Args:
      units: N.
    """

    gates = ("z", "r", "h")
    kernel_initializer = staticmethod(lecun_normal)  # no unit sums over units, so N has no part in the variance

    def unit_parameters(self) -> tuple[Parameter, ...]:
        shape = (self.units,)
        return (
            *(Parameter(f"w_{gate}", "recurrent", shape, normal(0.1)) for gate in self.gates),
            *(Parameter(f"b_{gate}", "bias", shape, zeros) for gate in self.gates),
        )

    def phi(self, state: State, u: ByName, c: ByName) -> State:
        (h,) = state
        z, _, g = self._gates(h, u, c)
        return (z * h + (1 - z) * g,)

    def derivatives(self, state: State, u: ByName, c: ByName) -> Local:
        (h,) = state
        z, r, g = self._gates(h, u, c)
        a_z = (h - g) * z * (1 - z)
        a_h = (1 - z) * (1 - g * g)
        a_r = a_h * c["w_h"] * h * r * (1 - r)
        j = z + c["w_z"] * a_z + c["w_r"] * a_r + c["w_h"] * r * a_h
        a = {"z": (a_z,), "r": (a_r,), "h": (a_h,)}
        w = {"w_z": (a_z * h,), "w_r": (a_r * h,), "w_h": (a_h * r * h,)}
        return Local(J=((j,),), a=a, v={**w, **{f"b_{gate}": entry for gate, entry in a.items()}})

    def _gates(self, h, u, c):
        z = tf.sigmoid(u["z"] + c["w_z"] * h + c["b_z"])
        r = tf.sigmoid(u["r"] + c["w_r"] * h + c["b_r"])
        return z, r, tf.tanh(u["h"] + c["w_h"] * (r * h) + c["b_h"])
