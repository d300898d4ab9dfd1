"""What RTRL and RTRLStack share: the call, its checks, and the shapes that Keras asks for."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_rtrl._checks import flag, shown
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.engine import Carry, zero_carry
from keras_rtrl.layers.carry import CARRIES, Chosen, KeepsCarry, chosen_elsewhere, known_training
from keras_rtrl.layers.signature import check_signature, sign

Shape = Sequence[int | None] | tf.TensorShape

# What keras.layers.LSTM takes and no layer here does, and what there is instead.
_NOT_HERE = {
    **dict.fromkeys(("dropout", "recurrent_dropout", "seed"), "put a keras Dropout layer below, or into an RTRLStack"),
    **dict.fromkeys(("activation", "recurrent_activation", "use_bias"), "they are the cell's own; RTU has activation"),
    "unit_forget_bias": "ELSTM has forget_bias",
    "unroll": "RTRL learns forward in time",
    "time_major": "sequences have shape [batch, time, features]",
    "use_cudnn": "RTRL layers have implementation",
}
_SAVE_WEIGHTS = inspect.unwrap(keras.Model.save_weights).__code__


class Recurrent(KeepsCarry, keras.layers.Layer):
    """A layer over sequences, whose `unroll` is a function of its arguments and the weights.

    `call` chooses the carries that `unroll` begins with, and keeps those that it ends with. A subclass gives the
    methods below that raise, and sets `_input_dim` in `build`.
    """

    zero_output_for_mask = False
    _input_dim = None
    if LEGACY:  # without names in an API TimeDistributed takes a layer for one that no mask of inner steps is given to
        _keras_api_names = _keras_api_names_v1 = ("keras_rtrl.layers.Recurrent",)

    def __init__(self, return_sequences: bool, return_state: bool, stateful: bool, go_backwards: bool, **kwargs: Any):
        if flag("go_backwards", go_backwards):
            raise ValueError("go_backwards must be False, also in Bidirectional: RTRL learns forward in time.")
        for name in kwargs.keys() & _NOT_HERE.keys():
            raise TypeError(
                f"{type(self).__name__} has no argument {name}, which keras.layers.LSTM has: {_NOT_HERE[name]} "
                '(docs/layers.md, "Coming from keras.layers.LSTM").'
            )
        flags = {"return_sequences": return_sequences, "return_state": return_state, "stateful": stateful}
        flags = {name: flag(name, value) for name, value in flags.items()}
        super().__init__(autocast=False, **kwargs)
        if not all(tf.as_dtype(dtype).is_floating for dtype in (self.compute_dtype, self.variable_dtype)):
            raise ValueError(
                f"dtype must be floating, or a policy of floating dtypes, got {shown(kwargs.get('dtype'))}."
            )
        self.return_sequences, self.return_state, self.stateful = flags.values()
        if self.return_state and self.activity_regularizer is not None:
            raise ValueError(
                "activity_regularizer must be None with return_state=True: Keras would penalise the traces too. Put "
                "keras.layers.ActivityRegularization after the output."
            )
        self.supports_masking = True
        self._training_carry = self._inference_carry = None

    def _recurrent_layers(self):
        """The RTRL layers, from below. No property: Keras saves what lists in properties hold, here maybe itself."""
        raise NotImplementedError

    def _input_widths(self, width):
        """Widths of the recurrent layers' inputs if the layer's own has `width` features."""
        raise NotImplementedError

    def _width(self, width):
        """Width of the output if the input has `width` features."""
        raise NotImplementedError

    def unroll(
        self,
        x: tf.Tensor,
        carries: Sequence[Carry],
        reset: tf.Tensor | None = None,
        mask: tf.Tensor | None = None,
        *,
        traces: Sequence[bool] | None = None,
        recur: Callable | None = None,
    ) -> tuple[tf.Tensor, list[Carry]]:
        """Outputs and new carries of a chunk, from the arguments and the weights alone.

        Args:
          x: [B, T, D].
          carries: a `Carry` for each recurrent layer.
          reset, mask: [B, T] bool or None.
          traces: for each recurrent layer, whether its new carry has traces; None: those have whose carry has.
          recur: function of an RTRL layer, its input [B, T, D], its `Carry`, reset, mask and traces, in the place of
            `RTRL.recur`.

        Returns:
          Outputs [B, T, W], of the last step alone [B, 1, W] if that suffices; a `Carry` for each recurrent layer.
        """
        raise NotImplementedError

    def _only_last(self, mask):
        return mask is None and not self.return_sequences

    def _shape_of_features(self, sequences_shape):
        """The width D of a call's input as `build` is told it."""
        shape = tuple(sequences_shape)
        if len(shape) != 3 or shape[-1] is None:
            raise ValueError(f"sequences must have shape [batch, time, features] with features known, got {shape}.")
        dim = int(shape[-1])
        if self.built and dim != self._input_dim:
            raise ValueError(f"{self.name} was built for {self._input_dim} features and gets {dim}.")
        return dim

    def __call__(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        # Here and not in `call`: before Keras asks for shapes, and while tf-keras' symbols still have their history.
        _check_kind("sequences", sequences)
        given = {**dict(zip(("initial_state", "mask", "training", "reset"), args, strict=False)), **kwargs}
        for name in ("initial_state", "mask", "reset"):
            for value in tf.nest.flatten(given.get(name)):
                if value is not None:
                    _check_kind(name, value)
        self._check_makers(given.get("initial_state"))
        return super().__call__(sequences, *args, **kwargs)

    def call(
        self,
        sequences: tf.Tensor,
        initial_state: tf.Tensor | Sequence[tf.Tensor] | None = None,
        mask: tf.Tensor | None = None,
        training: bool | tf.Tensor | None = None,
        reset: tf.Tensor | None = None,
    ) -> tf.Tensor | tuple[tf.Tensor, ...]:
        training = known_training(training)
        if self.stateful and tf.is_tensor(training):  # which carry goes on is known when the function runs
            branches = [
                functools.partial(self.call, sequences, initial_state, mask, known, reset) for known in (True, False)
            ]
            return tf.cond(training, *branches)
        self._check_sequences(sequences)
        x = tf.convert_to_tensor(sequences)
        x = self._with_steps(tf.ensure_shape(x, (None, None, self._input_dim)))
        if mask is None:  # Keras 3 drops the automatic mask if other tensor arguments are passed
            mask = getattr(sequences, "_keras_mask", None)
        mask = self._check_flags("mask", mask, x)
        reset = self._check_flags("reset", reset, x)
        if mask is not None:
            x = tf.where(mask[..., None], x, tf.zeros_like(x))  # padding may hold anything, NaN too
        chosen = chosen_elsewhere(self, x, initial_state, reset) or self._choose(x, initial_state, training, reset)
        carries, keep, traces, reset, recur = chosen
        y, carries = self.unroll(x, carries, reset, mask, traces=traces, recur=recur)
        carries = keep(carries)
        if mask is not None:
            y = hold(y, mask, self.zero_output_for_mask and self.return_sequences)
        y = y if self.return_sequences else y[:, -1]
        return (y, *tf.nest.flatten(carries)) if self.return_state else y

    def _choose(self, x, initial_state, training, reset):
        """The carries of a call: given, kept, or zeros."""
        if initial_state is not None:
            self._check_not_stateful()
            return Chosen(self.given_carries(x, initial_state), self._signed, reset=reset)
        batch = x.shape[0]
        if self.stateful:
            self._check_batch(batch)
            own = self._own_carry(batch, training)

            def keep(carries):
                for variable, value in zip(own.values(), tf.nest.flatten(carries), strict=True):
                    variable.assign(value)
                return self._signed(self.completed(carries)) if self.return_state else carries

            carries = self._by_layer({name: tf.convert_to_tensor(variable) for name, variable in own.items()})
            return Chosen(carries, keep, reset=reset)
        if self.return_state and batch is not None:
            self._check_memory(batch)
        rows = tf.shape(x)[0] if batch is None else batch
        carries = self._by_layer({e.name: tf.zeros((rows, *e.shape), e.dtype) for e in self._entries(False)})
        return Chosen(carries, self._signed, [self.return_state] * len(carries), reset)

    def given_carries(self, x: tf.Tensor, initial_state: tf.Tensor | Sequence[tf.Tensor]) -> list[Carry]:
        """A `Carry` for each recurrent layer, of an `initial_state` that is checked against x [B, T, D]."""
        entries = self._check_initial_state(initial_state, x.shape[0])
        values = zip(entries, tf.nest.flatten(initial_state), strict=True)
        return self._by_layer({e.name: self._check_rows(e, value, x) for e, value in values})

    def completed(self, carries: Sequence[Carry]) -> list[Carry]:
        """The carries of a stateful layer, with zeros for traces that are not there."""

        def zero(layer, state):
            return zero_carry(layer.cell, state.shape[0], layer.trace_dtype, layer._input_dim)

        return [
            zero(layer, carry.state)._replace(state=carry.state) if not carry.has_traces else carry
            for layer, carry in zip(self._recurrent_layers(), carries, strict=True)
        ]

    def _signed(self, carries):
        for layer, carry in zip(self._recurrent_layers(), carries, strict=True):
            sign(carry, layer)
        return carries

    # Checks. Each raises before anything is computed.

    def _check_sequences(self, sequences):
        _check_kind("sequences", sequences)
        shape, dtype = sequences.shape, sequences.dtype
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
        _check_kind(name, flags)
        flags = tf.convert_to_tensor(flags)
        if not x.shape[:2].is_compatible_with(flags.shape):
            raise ValueError(f"{name} must have shape [batch, time] = {tuple(x.shape[:2])}, got {tuple(flags.shape)}.")
        if not (flags.dtype.is_bool or flags.dtype.is_integer or flags.dtype.is_floating):
            raise TypeError(f"{name} must be boolean, got {flags.dtype.name}.")
        flags = self._of_size(flags, x, 2, name)
        if flags.dtype.is_bool:
            return flags
        true = flags == 1
        either = tf.reduce_all(true | (flags == 0))  # NaN is neither
        if not tf.is_symbolic_tensor(either) and not either:
            raise ValueError(f"{name} must be boolean, or 0 and 1 alone, got {shown(np.unique(flags))}.")
        message = f"{name} of {self.name} must be boolean, or 0 and 1 alone."
        with tf.control_dependencies([tf.debugging.Assert(either, [message])]):
            return tf.identity(true)

    def _check_initial_state(self, initial_state, batch):
        """Entries of the carry that `initial_state` is: states alone, or the whole."""
        values = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
        states, whole = self._entries(False), self._entries(True)
        if len(values) not in (len(states), len(whole)):
            alone = "the state [B, N, m]" if len(states) == 1 else f"the {len(states)} states"
            names = ", ".join(entry.name for entry in whole)
            raise ValueError(f"initial_state must be {alone} alone or [{names}], got {len(values)} tensors.")
        entries = states if len(values) == len(states) else whole
        for entry, value in zip(entries, values, strict=True):
            what = f"initial_state: {entry.name}"
            _check_kind(what, value)
            if not tf.TensorShape(value.shape).is_compatible_with((batch, *entry.shape)):
                raise ValueError(f"{what} must have shape {(batch, *entry.shape)}, got {tuple(value.shape)}.")
            dtype = tf.as_dtype(value.dtype)
            if not (dtype.is_floating or dtype.is_integer):
                raise TypeError(f"{what} must be numbers, got {dtype.name}.")
        return entries

    def _check_not_stateful(self):
        if self.stateful:
            raise ValueError("initial_state must be left out: a stateful layer carries its own; see reset_state().")

    def _check_makers(self, initial_state):
        """Refuses parts that are missing, and traces that are known to be another layer's."""
        layers = self._recurrent_layers()
        if not isinstance(initial_state, (list, tuple)):
            return
        names = [field + suffix for suffix in self._suffixes for field in Carry._fields]
        for name, value in zip(names[:: 1 if len(initial_state) == len(names) else 3], initial_state, strict=False):
            if value is None:  # Keras before 3.13 fails on it by itself
                _check_kind(f"initial_state: {name}", value)
        if len(initial_state) == 3 * len(layers):
            for layer, suffix, *traces in zip(
                layers, self._suffixes, initial_state[1::3], initial_state[2::3], strict=True
            ):
                for field, trace in zip(("S", "r"), traces, strict=True):
                    check_signature(f"initial_state: {field}{suffix}", trace, layer)

    def _check_rows(self, entry, value, x):
        value = tf.ensure_shape(tf.cast(value, entry.dtype), (None, *entry.shape))
        return self._of_size(value, x, 1, f"{entry.name} of initial_state")

    # What tracing does not know is asked of the graph.

    def _of_size(self, value, x, axes, what):
        message = f"{what} of {self.name} must have the {('batch', '[batch, time]')[axes - 1]} of sequences"
        return of_size(value, x, axes, message)

    def _with_steps(self, x):
        if x.shape[1] is not None:
            return x
        message = f"sequences of {self.name} must have at least one step, got time = 0."
        with tf.control_dependencies([tf.debugging.Assert(tf.shape(x)[1] > 0, [message])]):
            return tf.identity(x)

    def _check_batch(self, batch):
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                f"stateful must be False under a strategy of {replicas} replicas, each of which has streams of its "
                "own: give the carry as initial_state."
            )
        if batch is None:
            raise ValueError(
                "stateful=True needs the same known batch size at every call: give keras.Input and, for arrays, fit "
                "the same batch_size, and let no batch be smaller (in tf.data: drop_remainder=True). To serve the "
                "model, keras_rtrl.export.inference_model leaves it free."
            )

    # What Keras asks.

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "stateful": self.stateful,
            "go_backwards": False,  # Bidirectional asks for it
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),  # tf-keras leaves it out
        }

    def compute_mask(self, sequences: Any, mask: Any = None) -> Any:
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        mask = mask if self.return_sequences else None
        return (mask, *(None,) * len(self._entries(True))) if self.return_state else mask

    def compute_output_shape(
        self,
        sequences_shape: Shape,
        initial_state_shape: Shape | Sequence[Shape] | None = None,
        reset_shape: Shape | None = None,
    ) -> tuple | tf.TensorShape:
        # One shape is the state's alone; a list holds the states or the whole carry.
        nested = initial_state_shape and isinstance(initial_state_shape[0], (list, tuple, tf.TensorShape))
        shapes = self._output_shapes(
            sequences_shape, (len(initial_state_shape) if nested else 1) if initial_state_shape else None
        )
        if LEGACY:  # whose own code takes a tuple for a structure of several shapes
            return tuple(map(tf.TensorShape, shapes)) if self.return_state else tf.TensorShape(shapes)
        return shapes

    def _carried(self, given, width):
        """Entries of the carry that comes back if `given` tensors are given as initial state; None: none are."""
        return self._entries(given != len(self._recurrent_layers()), self._input_widths(width))

    def _output_shapes(self, sequences_shape, given):
        shape = tuple(sequences_shape)
        size = self._width(shape[2])
        y = (shape[0], shape[1], size) if self.return_sequences else (shape[0], size)
        return (y, *((shape[0], *e.shape) for e in self._carried(given, shape[2]))) if self.return_state else y

    if LEGACY:

        def _trackable_children(self, save_type="checkpoint", **kwargs):
            # What tf-keras' save_weights writes is tf.train.Checkpoint(root=model), and it tells layers nothing: a
            # checkpoint is to hold the carries, and a file of weights the weights alone.
            children = super()._trackable_children(save_type, **kwargs)
            frame = sys._getframe()
            while frame is not None and frame.f_code is not _SAVE_WEIGHTS:
                frame = frame.f_back
            return {name: child for name, child in children.items() if frame is None or name not in CARRIES}

    else:

        def compute_output_spec(
            self,
            sequences: Any,
            initial_state: Any = None,
            mask: Any = None,
            training: bool | None = None,
            reset: Any = None,
        ) -> keras.KerasTensor | tuple[keras.KerasTensor, ...]:
            self._check_sequences(sequences)
            if initial_state is not None:
                self._check_not_stateful()
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


def build(layer, width):
    """Builds a layer for inputs [B, T, width] unless it is built."""
    if not layer.built:
        with tf.name_scope(layer.name) if LEGACY else contextlib.nullcontext():  # tf-keras names weights by it
            layer.build((None, None, width))


def hold(y, mask, zero):
    """Outputs [B, T, W] with masked steps holding the last real one (zeros before it), or zeros if `zero`."""
    if zero:
        return tf.where(mask[..., None], y, tf.zeros_like(y))
    real = tf.cumsum(tf.cast(mask, tf.int32), axis=1)  # real steps so far
    order = tf.argsort(tf.cast(~mask, tf.int32), axis=1, stable=True)  # their positions come first
    held = tf.gather(y, tf.gather(order, tf.maximum(real - 1, 0), batch_dims=1), batch_dims=1)
    return tf.where((real > 0)[..., None], held, tf.zeros_like(held))


def of_size(value, x, axes, message):
    """`value`, whose first sizes must be those of `x`: asked of the graph if tracing does not know them.

    Args:
      value, x: tensors whose sizes fit as far as tracing knows.
      axes: how many sizes.
      message: what the error begins with; both shapes follow.
    """
    ours, theirs = value.shape[:axes], x.shape[:axes]
    if ours.is_fully_defined() and theirs.is_fully_defined():
        return value
    got, wanted = tf.shape(value), tf.shape(x)
    # One comparison a size: a reduction of them would leave the host.
    checks = [
        tf.debugging.Assert(tf.equal(got[i], wanted[i]), [message, wanted[:axes], "got", got[:axes]])
        for i in range(axes)
    ]
    with tf.control_dependencies(checks):
        # Grappler may merge the reshaping below with others and lose what it waits for, but it leaves this alone.
        value = tf.ensure_shape(value, value.shape)
    value = tf.reshape(value, tf.concat([wanted[:axes], got[axes:]], 0))  # XLA drops assertions: there this fails
    return tf.ensure_shape(value, (*theirs, *value.shape[axes:]))


def _check_kind(what, value):
    """Raises TypeError unless `value` is a dense tensor or array, or Keras' symbol of one."""
    spec = getattr(value, "type_spec", value)  # of tf-keras' symbols
    ragged = isinstance(spec, (tf.RaggedTensor, tf.RaggedTensorSpec)) or getattr(value, "ragged", False) is True
    sparse = isinstance(spec, (tf.SparseTensor, tf.SparseTensorSpec)) or getattr(value, "sparse", False) is True
    if ragged or sparse:
        ways = "its to_tensor(), and mask for the steps that are there" if ragged else "tf.sparse.to_dense of it"
        raise TypeError(f"{what} must be dense, got a {'ragged' if ragged else 'sparse'} tensor; give {ways}.")
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(f"{what} must be a tensor or an array, got {type(value).__name__}: {shown(value)}.")
    if getattr(value.shape, "rank", 0) is None:
        raise ValueError(f"{what} must have a known number of dimensions, got a tensor of unknown shape.")
