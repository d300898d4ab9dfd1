"""Which layer made traces, if that can be known.

Traces are derivatives with respect to the weights of the layer that made them; to another layer of the same shapes they
are wrong numbers. A trace is a tensor like any other, so a layer signs the very tensors that it returns. The signature
is lost if another tensor is made of them: by numpy, slices, concatenation, arguments and results of a tf.function.
"""

import numpy as np
import tensorflow as tf


def sign(carry, layer):
    """Marks the traces of a `Carry` as made by `layer`."""
    for trace in tf.nest.flatten((carry.S, carry.r)):
        trace._rtrl_layer = layer


def check_signature(what, trace, layer):
    """Raises ValueError if `trace` is known to be another layer's than `layer`, unless both have the same weights."""
    maker = _maker(trace)
    if maker is None or maker is layer or _same_weights(maker, layer):
        return
    raise ValueError(
        f"{what} was made by layer {maker.name}: its derivatives are with respect to that layer's weights, not to "
        f"those of {layer.name}. Give the state alone."
    )


def _maker(trace):
    """The RTRL layer that made a trace, or None if it is not known."""
    if hasattr(trace, "_rtrl_layer"):
        return trace._rtrl_layer
    history = getattr(trace, "_keras_history", None)  # of Keras' symbols
    if history is None or not hasattr(history[0], "_recurrent_layers"):
        return None
    return history[0]._recurrent_layers()[(history[2] - 1) // 3]  # after the output, three tensors a layer


def _same_weights(one, other):
    """Whether the recurrent weights are the same variables or, if they have values now, equal as of a copy."""
    if type(one.cell) is not type(other.cell) or not (one.built and other.built):
        return False
    pairs = zip(one.recurrent_weights().values(), other.recurrent_weights().values(), strict=True)
    return all(a is b or (tf.executing_eagerly() and np.array_equal(a, b)) for a, b in pairs)
