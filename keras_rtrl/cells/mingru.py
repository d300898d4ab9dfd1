"""minGRU of Feng, Tung, Ahmed, Bengio and Hajimirsadegh, "Were RNNs all we needed?" (2024; arXiv 2410.01201)."""

import tensorflow as tf

from keras_rtrl.cells.initializers import lecun_normal, zeros
from keras_rtrl.engine.cell import ByName, Local, Parameter, RTRLCell, State


class MinGRUCell(RTRLCell):
    """Minimal GRU: gate and candidate see the input only. The state h is the output, of width N.

    `z = sigmoid(x Z + b_z)`, `g = x H + b_h`, `h = (1 - z) h' + z g` (h' the previous h; z writes, the other way round
    than in `EGRUCell`). This is the paper's plain form: a linear candidate, without the positive function
    that its log-space form puts around it for the sake of a parallel scan.

    Derivatives (rtrl-math.md, section 1): `a_z = (g - h') z (1 - z)`, `a_h = z`, `J = 1 - z`; v: `b -> a`.

    Args:
      units: N.
    """

    gates = ("z", "h")
    kernel_initializer = staticmethod(lecun_normal)

    def unit_parameters(self) -> tuple[Parameter, ...]:
        return tuple(Parameter(f"b_{gate}", "bias", (self.units,), zeros) for gate in self.gates)

    def phi(self, state: State, u: ByName, c: ByName) -> State:
        (h,) = state
        z, g = self._gates(u, c)
        return ((1 - z) * h + z * g,)

    def derivatives(self, state: State, u: ByName, c: ByName) -> Local:
        (h,) = state
        z, g = self._gates(u, c)
        a = {"z": ((g - h) * z * (1 - z),), "h": (z,)}
        return Local(J=((1 - z,),), a=a, v={"b_z": a["z"], "b_h": a["h"]})

    def _gates(self, u, c):
        return tf.sigmoid(u["z"] + c["b_z"]), u["h"] + c["b_h"]
