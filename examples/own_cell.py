"""A recurrent cell of your own in an agent, in this file alone.

A unit remembers with a time constant tau that it learns, in steps:

    s_t = keep s_{t-1} + sqrt(1 - keep^2) u_t        u = x W,  keep = exp(-1 / tau),  tau = exp(log_tau)

    keras-rtrl train tmaze_r2ac --module examples/own_cell.py \\
        --gin "ActorCriticNetwork.core = 'own_cell:SlowCell'" \\
        --gin "ActorCriticNetwork.core_options = {'max_tau': 100.0}"

The agent must remember the cue of the first step to the end of a corridor of 40 steps. Rollouts have 10 steps.
`docs/write_your_own_cell.md` explains the methods. This proves the cell's derivatives:

    python examples/own_cell.py
"""

import math

import tensorflow as tf

from keras_rtrl.cells import Parameter, RTRLCell
from keras_rtrl.testing import check_rtrl_cell


class SlowCell(RTRLCell):
    """Linear units; each learns a time constant.

    Args:
      units: N.
      max_tau: steps; time constants start log-uniform between 1 and this.
    """

    gates = ("u",)

    def __init__(self, units, max_tau=100.0):
        super().__init__(units)
        self.max_tau = max_tau

    def unit_parameters(self):
        def log_tau(shape, dtype=None):
            return tf.random.uniform(shape, 0.0, math.log(self.max_tau), tf.as_dtype(dtype or tf.float32))

        return (Parameter("log_tau", "recurrent", (self.units,), log_tau),)

    def coefficients(self, rho):
        inverse_tau = tf.exp(-rho["log_tau"])
        return {"keep": tf.exp(-inverse_tau), "scale": tf.sqrt(1.0 - tf.exp(-2.0 * inverse_tau))}

    def phi(self, state, u, c):
        (s,) = state
        return (c["keep"] * s + c["scale"] * u["u"],)

    def get_config(self):
        return {**super().get_config(), "max_tau": self.max_tau}


if __name__ == "__main__":
    print(check_rtrl_cell(SlowCell(3)))
