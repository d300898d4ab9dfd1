"""What RTRL and RTRLStack share: the call, its checks, and the shapes that Keras asks for."""

import numpy as np
import tensorflow as tf

from keras_rtrl._checks import flag
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.engine import zero_carry
from keras_rtrl.layers.carry import KeepsCarry

# What keras.layers.LSTM takes and no layer here does, and what there is instead.
_NOT_HERE = {
    **dict.fromkeys(("dropout", "recurrent_dropout", "seed"), "put a keras Dropout layer below, or into an RTRLStack"),
    **dict.fromkeys(("activation", "recurrent_activation", "use_bias"), "they are the cell's own; RTU has activation"),
    "unit_forget_bias": "ELSTM has forget_bias",
    **dict.fromkeys(("go_backwards", "unroll"), "RTRL learns forward in time"),
    "time_major": "sequences have shape [batch, time, features]",
    "use_cudnn": "RTRL layers have implementation",
}


class Recurrent(KeepsCarry, keras.layers.Layer):
    """A layer over sequences whose carry is an argument and a result of `_run`.

    A subclass gives the methods below that raise, and sets `_input_dim` where it is built.
    """

    zero_output_for_mask = False
    _input_dim = None

    def __init__(self, return_sequences, return_state, stateful, **kwargs):
        for name in kwargs.keys() & _NOT_HERE.keys():
            raise TypeError(
                f"{type(self).__name__} has no argument {name}, which keras.layers.LSTM has: {_NOT_HERE[name]} "
                '(docs/layers.md, "Coming from keras.layers.LSTM").'
            )
        flags = {"return_sequences": return_sequences, "return_state": return_state, "stateful": stateful}
        flags = {name: flag(name, value) for name, value in flags.items()}
        super().__init__(autocast=False, **kwargs)
        if not all(tf.as_dtype(dtype).is_floating for dtype in (self.compute_dtype, self.variable_dtype)):
            raise ValueError(f"dtype must be floating, or a policy of floating dtypes, got {kwargs.get('dtype')!r}.")
        self.return_sequences, self.return_state, self.stateful = flags.values()
        self.supports_masking = True
        self._training_carry = self._inference_carry = None

    def _recurrent_layers(self):
        """The RTRL layers, from below. No property: Keras saves what lists in properties hold, here maybe itself."""
        raise NotImplementedError

    def _input_widths(self, width):
        """Widths of the recurrent layers' inputs where the layer's own has `width` features."""
        raise NotImplementedError

    def _width(self, width):
        """Width of the output where the input has `width` features."""
        raise NotImplementedError

    def _run(self, x, carries, reset, mask, traces):
        """Outputs and new carries of a chunk.

        Args:
          x: [B, T, D].
          carries: a `Carry` for each recurrent layer.
          reset, mask: [B, T] bool or None.
          traces: for each recurrent layer, whether its new carry has traces.

        Returns:
          Outputs [B, T, W], of the last step alone [B, 1, W] where `_only_last(mask)`; a `Carry` for each recurrent
          layer.
        """
        raise NotImplementedError

    def _only_last(self, mask):
        return mask is None and not self.return_sequences

    def _shape_of_features(self, sequences_shape):
        """The width D of a call's input as `build` is told it."""
        shape = tuple(sequences_shape)
        if len(shape) != 3 or shape[-1] is None:
            raise ValueError(f"sequences must have shape [batch, time, features] with features known, got {shape}.")
        return int(shape[-1])

    def call(self, sequences, initial_state=None, mask=None, training=None, reset=None):
        x = tf.convert_to_tensor(sequences)
        self._check_sequences(x.shape, x.dtype)
        x = tf.ensure_shape(x, (None, None, self._input_dim))
        if mask is None:  # Keras 3 drops the automatic mask where other tensor arguments are passed
            mask = getattr(sequences, "_keras_mask", None)
        if not (training is None or isinstance(training, (bool, int, np.bool_)) or tf.is_tensor(training)):
            raise ValueError(f"training must be True, False or None, got {training!r}.")
        mask = self._check_flags("mask", mask, x)
        reset = self._check_flags("reset", reset, x)
        if mask is not None:
            x = tf.where(mask[..., None], x, tf.zeros_like(x))  # padding may hold anything, NaN too
        own, fresh, batch = None, False, x.shape[0]
        if initial_state is not None:
            entries = self._check_initial_state(initial_state, batch)
            named = {
                e.name: tf.ensure_shape(tf.cast(value, e.dtype), (batch, *e.shape))
                for e, value in zip(entries, tf.nest.flatten(initial_state), strict=True)
            }
        elif self.stateful:
            self._check_batch(batch)
            own = self._own_carry(batch, training)
            named = {name: tf.convert_to_tensor(variable) for name, variable in own.items()}
        else:
            fresh = self.return_state
            zeros = self.get_initial_state(tf.shape(x)[0])
            named = {
                e.name: tf.ensure_shape(zero, (batch, *e.shape))
                for e, zero in zip(self._entries(False), zeros, strict=True)
            }
        carries = self._by_layer(named)
        y, carries = self._run(x, carries, reset, mask, [fresh or c.S is not None for c in carries])
        if own is not None:
            for variable, value in zip(own.values(), flat(carries), strict=True):
                variable.assign(value)
            if self.return_state:  # the inference state has no traces
                carries = [
                    c
                    if c.S is not None
                    else zero_carry(layer.cell, batch, layer.trace_dtype, layer._input_dim)._replace(state=c.state)
                    for layer, c in zip(self._recurrent_layers(), carries, strict=True)
                ]
        if mask is not None:
            y = hold(y, mask, self.zero_output_for_mask and self.return_sequences)
        y = y if self.return_sequences else y[:, -1]
        return (y, *flat(carries)) if self.return_state else y

    # Checks. Each raises before anything is computed.

    def _check_sequences(self, shape, dtype):
        if len(shape) != 3:
            raise ValueError(f"sequences must have shape [batch, time, features], got {tuple(shape)}.")
        if not tf.as_dtype(dtype).is_floating:
            raise TypeError(f"sequences must be floating, got {tf.as_dtype(dtype).name}.")
        if shape[1] == 0:
            raise ValueError("sequences must have at least one step, got time = 0.")
        if shape[2] not in (None, self._input_dim):
            raise ValueError(
                f"sequences must have {self._input_dim} features as this layer was built for, got {shape[2]}."
            )

    def _check_flags(self, name, flags, x):
        if flags is None:
            return None
        flags = tf.convert_to_tensor(flags)
        if flags.shape.rank != 2 or not x.shape[:2].is_compatible_with(flags.shape):
            raise ValueError(f"{name} must have shape [batch, time] = {tuple(x.shape[:2])}, got {tuple(flags.shape)}.")
        if not (flags.dtype.is_bool or flags.dtype.is_integer or flags.dtype.is_floating):
            raise TypeError(f"{name} must be boolean, got {flags.dtype.name}.")
        return tf.cast(flags, tf.bool)

    def _check_initial_state(self, initial_state, batch):
        """Entries of the carry that `initial_state` is: states alone, or the whole."""
        if self.stateful:
            raise ValueError("initial_state must be left out: a stateful layer carries its own; see reset_state().")
        values = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
        states, whole = self._entries(False), self._entries(True)
        if len(values) not in (len(states), len(whole)):
            alone = "the state [B, N, m]" if len(states) == 1 else f"the {len(states)} states"
            names = ", ".join(entry.name for entry in whole)
            raise ValueError(f"initial_state must be {alone} alone or [{names}], got {len(values)} tensors.")
        entries = states if len(values) == len(states) else whole
        for entry, value in zip(entries, values, strict=True):
            got = tuple(value.shape) if hasattr(value, "shape") else type(value).__name__
            if isinstance(got, str) or not tf.TensorShape(got).is_compatible_with((batch, *entry.shape)):
                raise ValueError(f"initial_state: {entry.name} must have shape {(batch, *entry.shape)}, got {got}.")
        return entries

    def _check_batch(self, batch):
        if batch is None:
            raise ValueError(
                "stateful=True needs the same known batch size at every call: give keras.Input and, for arrays, fit "
                "the same batch_size, and let no batch be smaller (in tf.data: drop_remainder=True). To serve the "
                "model, keras_rtrl.export.inference_model leaves it free."
            )

    # What Keras asks.

    def compute_mask(self, sequences, mask=None):
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        mask = mask if self.return_sequences else None
        return (mask, *(None,) * len(self._entries(True))) if self.return_state else mask

    def compute_output_shape(self, sequences_shape, initial_state_shape=None, reset_shape=None):
        # One shape is the state's alone; a list holds the states or the whole carry.
        nested = initial_state_shape and isinstance(initial_state_shape[0], (list, tuple, tf.TensorShape))
        shapes = self._output_shapes(
            sequences_shape, (len(initial_state_shape) if nested else 1) if initial_state_shape else None
        )
        if LEGACY:  # whose own code takes a tuple for a structure of several shapes
            return tuple(map(tf.TensorShape, shapes)) if self.return_state else tf.TensorShape(shapes)
        return shapes

    def _carried(self, given, width):
        """Entries of the carry that comes back where `given` tensors are given as initial state; None: none are."""
        return self._entries(given != len(self._recurrent_layers()), self._input_widths(width))

    def _output_shapes(self, sequences_shape, given):
        shape = tuple(sequences_shape)
        size = self._width(shape[2])
        y = (shape[0], shape[1], size) if self.return_sequences else (shape[0], size)
        return (y, *((shape[0], *e.shape) for e in self._carried(given, shape[2]))) if self.return_state else y

    if not LEGACY:

        def compute_output_spec(self, sequences, initial_state=None, mask=None, training=None, reset=None):
            self._check_sequences(sequences.shape, sequences.dtype)
            if initial_state is not None:
                self._check_initial_state(initial_state, sequences.shape[0])
            elif self.stateful:
                self._check_batch(sequences.shape[0])
            given = None if initial_state is None else len(tf.nest.flatten(initial_state))
            shapes = self._output_shapes(sequences.shape, given)
            if not self.return_state:
                return keras.KerasTensor(shapes, dtype=self.compute_dtype)
            y, *carry = shapes
            entries = self._carried(given, sequences.shape[2])
            return (
                keras.KerasTensor(y, dtype=self.compute_dtype),
                *(keras.KerasTensor(s, dtype=e.dtype) for s, e in zip(carry, entries, strict=True)),
            )


def flat(carries):
    """Tensors of carries, layer after layer."""
    return tuple(value for carry in carries for value in carry if value is not None)


def hold(y, mask, zero):
    """Outputs [B, T, W] with masked steps holding the last real one (zeros before it), or zeros if `zero`."""
    if zero:
        return tf.where(mask[..., None], y, tf.zeros_like(y))
    real = tf.cumsum(tf.cast(mask, tf.int32), axis=1)  # real steps so far
    order = tf.argsort(tf.cast(~mask, tf.int32), axis=1, stable=True)  # their positions come first
    held = tf.gather(y, tf.gather(order, tf.maximum(real - 1, 0), batch_dims=1), batch_dims=1)
    return tf.where((real > 0)[..., None], held, tf.zeros_like(held))
