"""The recurrent cores of the actor-critic network, behind one interface.

A core maps (features [B, T, D], reset bool [B, T], carry) to (y [B, T, W], carry after the last frame). A carry is a
tuple of tensors [B, ...]; its first `len(core.state_spec)` members are the state, what follows are traces. A call
with the state alone makes no traces and gives the state alone. No gradient ever flows into a carry.
"""

import tensorflow as tf
from tf_agents.keras_layers import dynamic_unroll_layer

from keras_rtrl import layers
from keras_rtrl._checks import whole_number
from keras_rtrl._keras import keras


class RTRLCore(tf.Module):
    """A keras_rtrl layer; carry (state [B, N, m],) or (state, S, r)."""

    def __init__(self, layer_class, units, gradient, options):
        super().__init__()
        self.layer = layer_class(units, gradient=gradient, return_sequences=True, return_state=True, **options)
        self._traces = gradient == "rtrl"
        self.state_spec = (tf.TensorSpec(self.layer.state_shape, tf.float32, name="state"),)

    def get_initial_carry(self, batch_size):
        return tuple(self.layer.get_initial_state(batch_size, traces=self._traces))

    def __call__(self, features, reset, carry):
        initial_state = carry[0] if len(carry) == 1 else tuple(carry)
        y, *carry = self.layer(features, initial_state=initial_state, reset=reset)
        return y, tuple(carry)


class LSTMCore(tf.Module):
    """Keras' LSTM, trained by TBPTT; carry (h [B, N], c [B, N])."""

    def __init__(self, units, gradient, options):
        super().__init__()
        if gradient != "tbptt":
            raise ValueError(f"core 'lstm' is trained by gradient='tbptt' only, got gradient={gradient!r}")
        self.layer = dynamic_unroll_layer.DynamicUnroll(keras.layers.LSTMCell(units, **options))
        self.state_spec = tuple(tf.TensorSpec([units], tf.float32, name=name) for name in ("h", "c"))

    def get_initial_carry(self, batch_size):
        return tuple(tf.zeros([batch_size, *spec.shape], spec.dtype) for spec in self.state_spec)

    def __call__(self, features, reset, carry):
        carry = [tf.stop_gradient(part) for part in carry]
        y, carry = self.layer(features, initial_state=carry, reset_mask=reset)
        return y, tuple(carry)


def make_core(name, units, gradient, options):
    """Makes the core `name`: "elstm", "rtu" or "lstm"; `options` go to the layer (to the LSTM cell).

    Raises:
      ValueError: unknown name, units that are no whole number of at least 1, or a gradient mode that the core does not
        have.
    """
    units = whole_number("units", units)
    if name == "lstm":
        return LSTMCore(units, gradient, options)
    rtrl_layers = {"elstm": layers.ELSTM, "rtu": layers.RTU}
    if name not in rtrl_layers:
        raise ValueError(f"core must be one of {sorted([*rtrl_layers, 'lstm'])}, got {name!r}")
    return RTRLCore(rtrl_layers[name], units, gradient, options)
