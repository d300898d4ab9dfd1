"""Recurrent cores: what the network needs of a layer, whichever layer it is.

A core maps features [B, T, D], resets [B, T] and a carry to (y [B, T, W], carry after step T - 1). A carry is a tuple
of tensors [B, ...]; its first `len(core.state_spec)` members are the state, what follows are traces. A call
with the state alone makes no traces and gives the state alone. No gradient ever flows into a carry. `core.layer` is the
layer, `core.output_size` is W.
"""

import inspect

import tensorflow as tf
from tf_agents.keras_layers import dynamic_unroll_layer

from keras_rtrl import layers
from keras_rtrl._checks import closest, fits_memory, shown, whole_number
from keras_rtrl._keras import keras

_RTRL_LAYERS = {"elstm": layers.ELSTM, "lru": layers.LRU, "rtu": layers.RTU}
_KERAS_CELLS = {"lstm": (keras.layers.LSTMCell, ("h", "c")), "gru": (keras.layers.GRUCell, ("h",))}
_CORES = sorted([*_RTRL_LAYERS, *_KERAS_CELLS, "stack"])
_GRADIENTS = ("rtrl", "tbptt", "instant")
# what the network itself says of a core's layer
_NOT_OPTIONS = {
    "cell",
    "gradient",
    "return_sequences",
    "return_state",
    "stateful",
    "go_backwards",
    "input_dim",
    "units",
}


class RTRLCore(tf.Module):
    """A keras_rtrl layer; carry (state [B, N, m],) or (state, S, r)."""

    def __init__(self, layer_class, units, gradient, options):
        super().__init__()
        self.layer = layer_class(units, gradient=gradient, return_sequences=True, return_state=True, **options)
        self._traces = gradient == "rtrl"
        self.output_size = self.layer.output_size
        self.state_spec = (tf.TensorSpec(self.layer.state_shape, self.layer.trace_dtype, name="state"),)

    def get_initial_carry(self, batch_size):
        return tuple(self.layer.get_initial_state(batch_size, traces=self._traces))

    def __call__(self, features, reset, carry):
        initial_state = carry[0] if len(carry) == 1 else tuple(carry)
        y, *carry = self.layer(features, initial_state=initial_state, reset=reset)
        return y, tuple(carry)


class KerasCore(tf.Module):
    """One of Keras' cells, trained by TBPTT; carry: its states, (h [B, N],) or (h, c)."""

    def __init__(self, cell_class, names, units, options):
        super().__init__()
        self.layer = dynamic_unroll_layer.DynamicUnroll(cell_class(units, **options))
        self.output_size = units
        self.state_spec = tuple(tf.TensorSpec([units], keras.backend.floatx(), name=name) for name in names)

    def get_initial_carry(self, batch_size):
        return tuple(tf.zeros([batch_size, *spec.shape], spec.dtype) for spec in self.state_spec)

    def __call__(self, features, reset, carry):
        carry = [tf.stop_gradient(part) for part in carry]
        y, carry = self.layer(features, initial_state=carry if len(carry) > 1 else carry[0], reset_mask=reset)
        return y, tuple(tf.nest.flatten(carry))


class StackCore(tf.Module):
    """No recurrence: a dense layer over the last `frames` features of an episode, zeros before its start.

    Carry: (features [B, frames - 1, D],), oldest first, zeros where they belong to no or another episode.
    """

    def __init__(self, units, input_dim, frames=4, activation="relu"):
        super().__init__()
        self._frames = whole_number("frames", frames)
        fits_memory(f"frames={self._frames}", 4 * self._frames * input_dim * units)
        self.layer = keras.layers.Dense(units, activation=activation)
        self.output_size = units
        self.state_spec = (tf.TensorSpec([self._frames - 1, input_dim], keras.backend.floatx(), name="features"),)

    def get_initial_carry(self, batch_size):
        return tuple(tf.zeros([batch_size, *spec.shape], spec.dtype) for spec in self.state_spec)

    def __call__(self, features, reset, carry):
        past = self._frames - 1
        x = tf.concat([tf.stop_gradient(carry[0]), features], axis=1)  # [B, past + T, D]
        # episode number of each step; what came before the chunk has number 0
        episode = tf.pad(tf.cumsum(tf.cast(reset, tf.int32), axis=1), [[0, 0], [past, 0]])
        steps = tf.shape(features)[1]
        window = []
        for lag in range(past, -1, -1):
            begin = past - lag
            same = episode[:, begin : begin + steps] == episode[:, past:]
            window.append(tf.where(same[..., None], x[:, begin : begin + steps], tf.zeros_like(features)))
        kept = x[:, tf.shape(x)[1] - past :]
        same = episode[:, tf.shape(x)[1] - past :] == episode[:, -1:]
        carry = tf.where(same[..., None], kept, tf.zeros_like(kept))
        return self.layer(tf.concat(window, axis=-1)), (tf.ensure_shape(carry, [None, *self.state_spec[0].shape]),)


def make_core(name, units, gradient, options, input_dim):
    """Makes the core `name`: "elstm", "rtu", "lstm", "gru" or "stack".

    Args:
      name: a key of the above.
      units: width of the layer.
      gradient: "rtrl", "tbptt" or "instant"; keras' layers and the stack have "tbptt" alone.
      options: dict of further arguments of the layer (of keras' cell; of `StackCore`).
      input_dim: width D of the features.

    Raises:
      ValueError: unknown name, units that are no whole number of at least 1 or for which there is no memory, a gradient
        mode that the core does not have, or an option that its layer does not take.
    """
    if not isinstance(name, str) or name not in _CORES:
        raise ValueError(f"core must be one of {_CORES}, got {shown(name)}")
    if gradient not in _GRADIENTS:
        raise ValueError(f"gradient must be one of {_GRADIENTS}, got {shown(gradient)}")
    if name not in _RTRL_LAYERS and gradient != "tbptt":
        raise ValueError(f"core {name!r} is trained by gradient='tbptt' only, got gradient={gradient!r}")
    units = whole_number("units", units)
    squared = name in _KERAS_CELLS or name == "elstm"
    fits_memory(f"units={units}", 4 * units * (input_dim + units * squared))
    _check_options(name, options)
    try:
        if name in _RTRL_LAYERS:
            return RTRLCore(_RTRL_LAYERS[name], units, gradient, options)
        if name == "stack":
            return StackCore(units, input_dim, **options)
        return KerasCore(*_KERAS_CELLS[name], units, options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"core_options: {error}") from error


def _check_options(name, options):
    if not isinstance(options, dict):
        raise ValueError(f"core_options must be a dict or None, got {shown(options)}")
    takers = [StackCore] if name == "stack" else [_KERAS_CELLS[name][0]] if name in _KERAS_CELLS else []
    takers = takers or [_RTRL_LAYERS[name], layers.RTRL]
    parameters = [parameter for taker in takers for parameter in inspect.signature(taker).parameters.values()]
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - _NOT_OPTIONS
    for option in options:
        if option not in known:
            raise ValueError(
                f"core_options of core {name!r} must be among {sorted(known)}, got {shown(option)}"
                f"{closest(option, known)}"
            )


def units_for(name, input_dim, parameters, gradient="tbptt", options=None):
    """Units with which a core comes closest to a number of trainable parameters, for fair comparisons.

    Args:
      name: as `make_core`.
      input_dim: width D of the features.
      parameters: number of trainable weights wanted, all of the core's layer counted.
      options: as `make_core`.

    Returns:
      Units, at least 1.

    Raises:
      ValueError: as `make_core`, or parameters that are no whole number of at least 1, fewer than one unit has, or for
        which there is no memory.
    """
    parameters = whole_number("recurrent_parameters", parameters)
    fits_memory(f"recurrent_parameters={parameters}", 4 * parameters)

    def count(units):
        core = make_core(name, units, gradient, dict(options or {}), input_dim)
        width = input_dim
        if name == "stack":
            width *= core.state_spec[0].shape[0] + 1
            core.layer.build([None, width])
        elif name in _KERAS_CELLS:
            core.layer.cell.build([None, width])
        else:
            core.layer.build([None, None, width])
        return sum(int(tf.size(weight)) for weight in core.layer.trainable_variables)

    one, two, three = (count(units) for units in (1, 2, 3))
    if parameters < one:
        raise ValueError(
            f"recurrent_parameters must be at least {one}, which core {name!r} has with one unit, got {parameters}"
        )

    def total(units):
        """What count(units) is, a polynomial of degree 2, without making so large a core."""
        steps = units - 1
        return one + steps * (two - one) + steps * (steps - 1) // 2 * (three - 2 * two + one)

    low, high = 1, 2
    while total(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) < parameters else (low, middle)
    return min((low, high), key=lambda units: abs(total(units) - parameters))
