"""Recurrent cores: what the network needs of a layer, whichever layer it is.

A core maps features [B, T, D], resets [B, T] and a carry to (y [B, T, W], carry after step T - 1). A carry is a tuple
of `Carry`: of each RTRL layer, from below; other cores have one for each tensor of their state. Given without traces it
comes back without them. No gradient ever flows into a carry. `core.state_spec` is a carry without traces, of
TensorSpecs; `core.layer` is the layer, `core.output_size` is W.
"""

import inspect

import tensorflow as tf
from tf_agents.keras_layers import dynamic_unroll_layer

from keras_rtrl import layers
from keras_rtrl._checks import closest, fits_memory, one_of, shown, whole_number
from keras_rtrl._keras import keras
from keras_rtrl.cells import RTRLCell
from keras_rtrl.engine import Carry, native
from keras_rtrl.layers.recurrent import Recurrent, build
from keras_rtrl.networks import bptt
from keras_rtrl.networks.parts import copy_of, is_named, made_by_name

_RTRL_LAYERS = {
    "egru": layers.EGRU,
    "elstm": layers.ELSTM,
    "lru": layers.LRU,
    "mingru": layers.MinGRU,
    "rtu": layers.RTU,
}
_KERAS_CELLS = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}
_STATE_NAMES = {keras.layers.LSTMCell: ("h", "c"), keras.layers.GRUCell: ("h",)}
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
    """An RTRL layer, or an RTRLStack of n of them; the zero carry has traces if a layer's gradient is "rtrl"."""

    def __init__(self, layer, input_dim):
        super().__init__()
        self.layer, self._input_dim = layer, input_dim
        states = layer.get_initial_state(1)
        names = ["state"] if len(states) == 1 else [f"state_{i}" for i in range(1, len(states) + 1)]
        self.state_spec = tuple(
            Carry(tf.TensorSpec(state.shape[1:], state.dtype, name=name))
            for name, state in zip(names, states, strict=True)
        )
        self.output_size = int(layer.compute_output_shape((None, None, input_dim))[0][-1])

    @property
    def gradients(self):
        """The gradient modes of the RTRL layers, from below."""
        return tuple(part.gradient for part in self._rtrl_layers())

    def runs_natively(self):
        """Whether the native op runs it outside XLA."""
        dtype = keras.backend.floatx()
        return all(native.choose(part.implementation, part.cell, dtype) for part in self._rtrl_layers())

    def _rtrl_layers(self):
        parts = self.layer.layers if isinstance(self.layer, layers.RTRLStack) else [self.layer]
        return [part for part in parts if isinstance(part, layers.RTRL)]

    def get_initial_carry(self, batch_size):
        build(self.layer, self._input_dim)
        return self.layer.initial_carries(batch_size, traces="rtrl" in self.gradients)

    def __call__(self, features, reset, carry):
        build(self.layer, self._input_dim)
        y, carry = self.layer.unroll(features, carry, reset)
        return y, tuple(carry)


class KerasCore(tf.Module):
    """One of Keras' cells, trained by TBPTT; carry: its states, (h [B, N],) or (h, c)."""

    def __init__(self, cell):
        super().__init__()
        self.layer = dynamic_unroll_layer.DynamicUnroll(cell)
        self._unroll = bptt.unroll_for(cell)
        sizes = [tf.TensorShape(size).as_list() for size in tf.nest.flatten(cell.state_size)]
        names = _STATE_NAMES.get(type(cell), [f"state_{i}" for i in range(1, len(sizes) + 1)])
        self._structure = cell.state_size
        self.output_size = int(tf.nest.flatten(cell.output_size)[0])
        self.state_spec = tuple(
            Carry(tf.TensorSpec(size, keras.backend.floatx(), name=name))
            for size, name in zip(sizes, names, strict=True)
        )

    def runs_natively(self):
        return False

    def get_initial_carry(self, batch_size):
        return zeros(self.state_spec, batch_size)

    def __call__(self, features, reset, carry):
        states = [tf.stop_gradient(part) for part in tf.nest.flatten(carry)]
        if self._unroll is not None and features.shape[1] not in (None, 1):
            if not self.layer.built:
                self.layer.build(features.shape)
            y, new = self._unroll(self.layer.cell, features, reset, states)
        else:
            given = tf.nest.pack_sequence_as(self._structure, states)
            y, new = self.layer(features, initial_state=given, reset_mask=reset)
        return y, tf.nest.pack_sequence_as(carry, tf.nest.flatten(new))


class StackCore(tf.Module):
    """No recurrence: a dense layer over the last `frames` features of an episode, zeros before its start.

    State: the features [B, frames - 1, D], oldest first, zeros if they belong to no or another episode.
    """

    def __init__(self, units, input_dim, frames=4, activation="relu"):
        super().__init__()
        self._frames = whole_number("frames", frames)
        fits_memory(f"frames={self._frames}", 4 * self._frames * input_dim * units)
        self.layer = keras.layers.Dense(units, activation=activation)
        self.output_size = units
        spec = tf.TensorSpec([self._frames - 1, input_dim], keras.backend.floatx(), name="features")
        self.state_spec = (Carry(spec),)

    def runs_natively(self):
        return False

    def get_initial_carry(self, batch_size):
        return zeros(self.state_spec, batch_size)

    def __call__(self, features, reset, carry):
        past = self._frames - 1
        x = tf.concat([tf.stop_gradient(carry[0].state), features], axis=1)  # [B, past + T, D]
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
        kept = tf.where(same[..., None], kept, tf.zeros_like(kept))
        return self.layer(tf.concat(window, axis=-1)), (Carry(tf.ensure_shape(kept, [None, past, x.shape[2]])),)


def zeros(specs, batch_size):
    """A nest of zeros [B, ...] for TensorSpecs of one stream."""
    return tf.nest.map_structure(lambda spec: tf.zeros([batch_size, *spec.shape], spec.dtype), specs)


def make_core(core, units, gradient, options, input_dim):
    """Makes a core from its name, or from an object.

    Args:
      core: "egru", "elstm", "lru", "mingru", "rtu", "gru", "lstm" or "stack"; or "module:name" of a function or class
        that makes an object of units and options. Or the object itself, for which units and options must be None: an
        `RTRLCell`, an RTRL layer or an RTRLStack that was not built, or a cell of Keras. Layers and Keras' cells are
        copied, so that each network has weights of its own.
      units: width of the layer; None for an object.
      gradient: "rtrl", "tbptt" or "instant"; keras' cells and the stack have "tbptt" alone, and an RTRL layer has its
        own. None: "rtrl", or what the core has.
      options: dict of further arguments of the layer (of keras' cell; of `StackCore`; of what "module:name" is).
      input_dim: width D of the features.

    Raises:
      ValueError: unknown name, units that are no whole number of at least 1 or for which there is no memory, a gradient
        mode that the core does not have, or an option that its layer does not take.
      TypeError: an object of another kind.
    """
    one_of("gradient", gradient, (*_GRADIENTS, None))
    if not isinstance(core, str):
        for name, value in (("units", units), ("core_options", options)):
            if value is not None and value != {}:
                raise ValueError(f"{name} must be None if core is an object, which has its own, got {shown(value)}")
        return _core_of(core, gradient, input_dim)
    if core not in _CORES and not is_named(core):
        raise ValueError(f"core must be one of {_CORES}, 'module:name' or an object, got {shown(core)}")
    units, options = whole_number("units", units), {} if options is None else options
    if not isinstance(options, dict):
        raise ValueError(f"core_options must be a dict or None, got {shown(options)}")
    squared = core in _KERAS_CELLS or core == "elstm"
    fits_memory(f"units={units}", 4 * units * (input_dim + units * squared))
    if is_named(core):
        return _core_of(made_by_name("core", core, units, **options), gradient, input_dim)
    gradient = _gradient_of(f"core {core!r}", gradient, _GRADIENTS if core in _RTRL_LAYERS else ("tbptt",))
    _check_options(core, options)
    try:
        if core in _RTRL_LAYERS:
            options = {**options, "gradient": gradient, "return_sequences": True, "return_state": True}
            return RTRLCore(_RTRL_LAYERS[core](units, **options), input_dim)
        if core == "stack":
            return StackCore(units, input_dim, **options)
        return KerasCore(_KERAS_CELLS[core](units, **options))
    except (ValueError, TypeError) as error:
        raise ValueError(f"core_options: {error}") from error


def _core_of(core, gradient, input_dim):
    """The core around a cell or a layer."""
    if isinstance(core, RTRLCell):
        gradient = _gradient_of("core", gradient, _GRADIENTS)
        return RTRLCore(layers.RTRL(core, gradient=gradient, return_sequences=True, return_state=True), input_dim)
    if isinstance(core, Recurrent):
        if core.stateful:
            raise ValueError(f"core: {core.name} must have stateful=False, the agent keeps its carry")
        copy = copy_of("core", core, return_sequences=True, return_state=True)
        made = RTRLCore(copy, input_dim)
        if gradient is not None and set(made.gradients) != {gradient}:
            own = " and ".join(map(repr, dict.fromkeys(made.gradients)))
            raise ValueError(f"gradient must be None if core is a layer, which has its own, {own}; got {gradient!r}")
        return made
    if isinstance(core, keras.layers.Layer) and hasattr(core, "state_size") and hasattr(core, "output_size"):
        _gradient_of("core of Keras", gradient, ("tbptt",))
        return KerasCore(copy_of("core", core))
    raise TypeError(
        f"core must be a name, an RTRLCell, an RTRL layer, an RTRLStack or a cell of {keras.__name__}.layers, got "
        f"{shown(core)}"
    )


def _gradient_of(what, gradient, known):
    if gradient is None:
        return known[0]
    if gradient not in known:
        raise ValueError(f"{what} is trained by gradient={known[0]!r} only, got gradient={gradient!r}")
    return gradient


def _check_options(name, options):
    takers = [StackCore] if name == "stack" else [_KERAS_CELLS[name]] if name in _KERAS_CELLS else []
    takers = takers or [_RTRL_LAYERS[name], layers.RTRL]
    parameters = [parameter for taker in takers for parameter in inspect.signature(taker).parameters.values()]
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - _NOT_OPTIONS
    for option in options:
        if option not in known:
            raise ValueError(
                f"core_options of core {name!r} must be among {sorted(known)}, got {shown(option)}"
                f"{closest(option, known)}"
            )


def units_for(name, input_dim, parameters, gradient=None, options=None):
    """Units with which a core comes closest to a number of trainable parameters, for fair comparisons.

    Args:
      name: a name, as `make_core` takes it.
      input_dim: width D of the features.
      parameters: number of trainable weights wanted, all of the core's layer counted.
      gradient, options: as `make_core`.

    Returns:
      Units, at least 1.

    Raises:
      ValueError: as `make_core`, or parameters that are no whole number of at least 1, fewer than one unit has, or for
        which there is no memory.
    """
    parameters = whole_number("recurrent_parameters", parameters)
    fits_memory(f"recurrent_parameters={parameters}", 4 * parameters)
    if not isinstance(name, str):
        raise ValueError(f"recurrent_parameters must be None if core is an object, got {parameters}")

    def count(units):
        core = make_core(name, units, gradient, dict(options or {}), input_dim)
        width = input_dim
        if isinstance(core, StackCore):
            width *= core.state_spec[0].state.shape[0] + 1
            core.layer.build([None, width])
        elif isinstance(core, KerasCore):
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
