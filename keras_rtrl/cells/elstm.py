"""eLSTM, the element-wise LSTM of Irie, Gopalakrishnan and Schmidhuber (2024); rtrl-math.md, section 4."""

from typing import Any

import tensorflow as tf

from keras_rtrl._checks import number
from keras_rtrl.cells.initializers import glorot_uniform, normal, zeros
from keras_rtrl.engine.blocks import product
from keras_rtrl.engine.cell import ByName, Local, Parameter, RTRLCell, State


class ELSTMCell(RTRLCell):
    """Element-wise LSTM: `f = sigmoid(x F + w_f c' + b_f)`, `z = tanh(x Z + w_z c' + b_z)`, `c = f c' + (1 - f) z`.

    The output gate is feed-forward: `h = sigmoid(x O + c W_o + b_o) c`, with W_o full. Output width N.

    Args:
      units: N.
      forget_bias: added to the initial value of b_f, for any initialiser; 3 to 8 for memories of hundreds of steps.
    """

    gates = ("f", "z")
    native = "elstm"

    def __init__(self, units: int, *, forget_bias: float = 0.0):
        super().__init__(units)
        self.forget_bias = number("forget_bias", forget_bias)

    def unit_parameters(self) -> tuple[Parameter, ...]:
        shape = (self.units,)
        return (
            Parameter("w_f", "recurrent", shape, normal(0.1)),
            Parameter("w_z", "recurrent", shape, normal(0.1)),
            Parameter("b_f", "bias", shape, normal(0.1), self.forget_bias),
            Parameter("b_z", "bias", shape, normal(0.1)),
        )

    def phi(self, state: State, u: ByName, c: ByName) -> State:
        (cell,) = state
        f, z = self._gates(cell, u, c)
        return (f * cell + (1 - f) * z,)

    def derivatives(self, state: State, u: ByName, c: ByName) -> Local:
        (cell,) = state
        f, z = self._gates(cell, u, c)
        a_z = (1 - f) * (1 - z * z)
        a_f = (cell - z) * f * (1 - f)
        j = f + c["w_z"] * a_z + c["w_f"] * a_f
        return Local(
            J=((j,),),
            a={"f": (a_f,), "z": (a_z,)},
            v={"w_f": (a_f * cell,), "w_z": (a_z * cell,), "b_f": (a_f,), "b_z": (a_z,)},
        )

    def _gates(self, cell, u, c):
        f = tf.sigmoid(u["f"] + c["w_f"] * cell + c["b_f"])
        z = tf.tanh(u["z"] + c["w_z"] * cell + c["b_z"])
        return f, z

    def output_parameters(self, input_dim: int) -> tuple[Parameter, ...]:
        return (
            Parameter("output_kernel", "kernel", (input_dim, self.units), glorot_uniform),
            Parameter("output_recurrent_kernel", "recurrent", (self.units, self.units), glorot_uniform),
            Parameter("output_bias", "bias", (self.units,), zeros),
        )

    def output(self, x: tf.Tensor, state: State, w: ByName) -> tf.Tensor:
        (cell,) = state
        gate = tf.sigmoid(
            tf.nn.bias_add(
                product(x, w["output_kernel"]) + product(cell, w["output_recurrent_kernel"]), w["output_bias"]
            )
        )
        return gate * cell

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "forget_bias": self.forget_bias}
