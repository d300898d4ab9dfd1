"""The one layer: an element-wise cell over a sequence, trained by exact RTRL."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_rtrl._checks import fits_memory, flag, one_of, shown
from keras_rtrl._keras import NO_AUTOCAST, deserialize, keras, register
from keras_rtrl.cells import EGRUCell, ELSTMCell, LRUCell, MinGRUCell, RTRLCell, RTUCell
from keras_rtrl.engine import Carry, chunked, native
from keras_rtrl.engine.cell import ROLES
from keras_rtrl.layers.readout import sound_only
from keras_rtrl.layers.recurrent import Recurrent, Shape

KerasObject = str | dict[str, Any] | Callable | None  # as Keras' initializers.get and the like take them

for _cell in (EGRUCell, ELSTMCell, LRUCell, MinGRUCell, RTUCell):
    register(_cell)


@register
class RTRL(Recurrent):
    """Recurrent layer of an element-wise cell whose gradient is exact real-time recurrent learning.

    Any gradient asked of it, by `tf.GradientTape`, `model.fit` or an optimiser, is the RTRL gradient: exact over all
    the history that is carried, at the cost of one chunk. It differs from truncated BPTT only where a carry is kept
    from call to call: with `stateful=True` or an explicit `initial_state`. Parameters that change between calls make
    the carried traces stale; that is inherent to online RTRL.

    Example:

    >>> layer = RTRL(ELSTMCell(32), return_sequences=True, return_state=True)
    >>> y, *carry = layer(x_first)                          # x_first [B, T, D]
    >>> with tf.GradientTape() as tape:
    ...     y, *carry = layer(x_next, initial_state=carry)  # its gradient reaches back through x_first

    Args:
      cell: an `RTRLCell`.
      gradient: "rtrl": exact over all history carried; "tbptt": inside the call only; "instant": inside the step only.
      implementation: "auto": the native op if it is built and applies, else plain TensorFlow, as under jit_compile
        and for one step without traces (acting), which gains nothing; "tf": plain TensorFlow; "native": the native op,
        an error if it cannot be had.
      return_sequences: whether to return the output of every step or of the last.
      return_state: whether to return, after the output, the carry: state [B, N, m] and traces S [B, D, G', N, m] and
        r [B, P, N, m].
      stateful: keep the carry from call to call, row b of a batch continuing row b of the one before. Two are kept: the
        training carry, and a state without traces that calls with `training=False` use. `reset_state()` zeroes both;
        `get_carry` and `set_carry` read and write them, and `carry_bytes` says what the carry takes.
      zero_output_for_mask: zeros at masked steps instead of the output of the step before.
      kernel_initializer, recurrent_initializer, bias_initializer: None: the cell's own.
      kernel_regularizer, recurrent_regularizer, bias_regularizer: as of `keras.layers.LSTM`.
      kernel_constraint, recurrent_constraint, bias_constraint: as of `keras.layers.LSTM`.
      trace_dtype: dtype of the carry and of the recurrence; None: the wider of float32 and the variable dtype.
      go_backwards: False; it is here to be refused, as by Bidirectional.

    Call arguments:
      sequences: [B, T, D], floating.
      initial_state: the state [B, N, m] alone: no traces are made, and the state alone comes back with `return_state`;
        or [state, S, r]. Its gradient is zero: a carry is a value. Refused by a stateful layer, which has its own.
      mask: [B, T] bool. Where false, state and traces pass through and the output of the step before is held.
      training: only False matters, and only if stateful: the inference state is used.
      reset: [B, T] bool, true if a new episode starts with that step: state and traces before it are zeroed.

    Output shape: [B, T, output_size] or [B, output_size], output_size N, 2 N for RTU.

    Raises:
      TypeError: `cell` is no RTRLCell, or `sequences` is not floating.
      ValueError: any other argument, or tensor shape, that does not fit.
      RuntimeError: when called, `implementation="native"` and the native op cannot be had there.
    """

    def __init__(
        self,
        cell: RTRLCell,
        *,
        gradient: str = "rtrl",
        implementation: str = "auto",
        return_sequences: bool = False,
        return_state: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = False,
        kernel_initializer: KerasObject = None,
        recurrent_initializer: KerasObject = None,
        bias_initializer: KerasObject = None,
        kernel_regularizer: KerasObject = None,
        recurrent_regularizer: KerasObject = None,
        bias_regularizer: KerasObject = None,
        kernel_constraint: KerasObject = None,
        recurrent_constraint: KerasObject = None,
        bias_constraint: KerasObject = None,
        trace_dtype: str | None = None,
        go_backwards: bool = False,
        **kwargs: Any,
    ):
        if not isinstance(cell, RTRLCell):
            raise TypeError(f"cell must be a keras_rtrl.cells.RTRLCell, got {type(cell).__name__}: {shown(cell)}.")
        cell.check()
        one_of("gradient", gradient, chunked.GRADIENTS)
        one_of("implementation", implementation, native.IMPLEMENTATIONS)
        one_of("trace_dtype", trace_dtype, (None, "float32", "float64"))
        zero_output_for_mask = flag("zero_output_for_mask", zero_output_for_mask)
        super().__init__(return_sequences, return_state, stateful, go_backwards, **kwargs)
        if trace_dtype is not None and tf.as_dtype(trace_dtype).size < tf.as_dtype(self.variable_dtype).size:
            raise ValueError(f"trace_dtype must not be narrower than the weights' {self.variable_dtype}.")
        self.cell = cell
        self.gradient = gradient
        self.implementation = implementation
        self.zero_output_for_mask = zero_output_for_mask
        self._given_trace_dtype = trace_dtype
        given = {
            "initializer": (kernel_initializer, recurrent_initializer, bias_initializer),
            "regularizer": (kernel_regularizer, recurrent_regularizer, bias_regularizer),
            "constraint": (kernel_constraint, recurrent_constraint, bias_constraint),
        }
        for kind, values in given.items():
            for role, value in zip(ROLES, values, strict=True):
                setattr(self, f"{role}_{kind}", _keras_object(role, kind, value))
        self._parameters = ()

    @property
    def trace_dtype(self) -> str:
        """Dtype of state and traces; never narrower than float32."""
        wider = "float64" if tf.as_dtype(self.variable_dtype).size > 4 else "float32"
        return self._given_trace_dtype or wider

    def _recurrent_layers(self):
        return [self]

    def _input_widths(self, width):
        return [width]

    def _width(self, width):
        return self.output_size

    @property
    def units(self) -> int:
        return self.cell.units

    @property
    def output_size(self) -> int:
        """Width of the output."""
        return self.cell.output_size

    @property
    def state_shape(self) -> tuple[int, int]:
        """(N, m)."""
        return (self.cell.units, self.cell.components)

    def build(
        self,
        sequences_shape: Shape,
        initial_state_shape: Shape | Sequence[Shape] | None = None,
        reset_shape: Shape | None = None,
    ) -> None:
        dim = self._shape_of_features(sequences_shape)
        if self.built:  # as Keras' recurrent layers, it keeps the weights that it has
            return
        self._input_dim = dim
        cell = self.cell
        kernel_shape = (dim, len(cell.gates) * cell.units)
        parameters = (*cell.unit_parameters(), *cell.output_parameters(dim))
        numbers = sum(math.prod(shape) for shape in (kernel_shape, *(p.shape for p in parameters)))
        fits_memory(
            f"{self.name}: units={cell.units} over {dim} features",
            numbers * tf.as_dtype(self.variable_dtype).size,
        )
        self._add("kernel", "kernel", kernel_shape, cell.kernel_initializer)
        for parameter in parameters:
            self._add(*parameter)
        self._parameters = ("kernel", *(parameter.name for parameter in parameters))
        super().build(sequences_shape)

    def _add(self, name, role, shape, initializer, offset=0.0):
        if hasattr(self, name):
            raise ValueError(f"cell: a parameter cannot be called {name!r}, which the layer needs for itself.")
        given = getattr(self, f"{role}_initializer")
        if isinstance(given, keras.initializers.Initializer):  # one each, or weights of one shape would be equal
            given = type(given).from_config(given.get_config())

        def initial(shape, dtype=None):
            try:
                return (given or initializer)(shape, dtype=dtype) + offset
            except ValueError as error:
                raise ValueError(f"{role}_initializer cannot make {name} of shape {tuple(shape)}: {error}") from error

        weight = self.add_weight(
            name=name,
            shape=shape,
            dtype=self.variable_dtype,
            initializer=initial,
            regularizer=getattr(self, f"{role}_regularizer"),
            constraint=getattr(self, f"{role}_constraint"),
            **NO_AUTOCAST,
        )
        setattr(self, name, weight)  # as an attribute, so that Checkpoint finds it

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
        (carry,), (wanted,) = carries, traces or [carries[0].has_traces]
        states, carry = (recur or type(self).recur)(self, x, carry, reset, mask, wanted)
        if self._only_last(mask):
            x, states = x[:, -1:], tuple(s[:, -1:] for s in states)
        if reset is None or x.shape[1] == 1:
            return self.read_out(x, states), [carry]
        return sound_only(self.read_out, x, states), [carry]

    def recur(
        self,
        x: tf.Tensor,
        carry: Carry,
        reset: tf.Tensor | None,
        mask: tf.Tensor | None,
        traces: bool,
        *,
        gradient: str | None = None,
    ) -> tuple[tuple[tf.Tensor, ...], Carry]:
        """States of a chunk, m tensors [B, T, N] in `trace_dtype`, and the `Carry` after it, its traces if `traces`.

        `gradient`: None: the layer's own.
        """
        w = {name: tf.cast(weight, self.trace_dtype) for name, weight in self.recurrent_weights().items()}
        kernel = w.pop("kernel")
        inputs = tf.cast(x, self.trace_dtype)
        return chunked.run(
            self.cell, kernel, w, inputs, carry, reset, mask, gradient or self.gradient, traces, self.implementation
        )

    def read_out(self, x: tf.Tensor, state: tf.Tensor | tuple[tf.Tensor, ...]) -> tf.Tensor:
        """Output [..., output_size] from the input and its new state: differentiable code.

        Args:
          x: [..., D].
          state: [..., N, m], as a carry has it, or a tuple of its m components [..., N].
        """
        states = state if isinstance(state, tuple) else tf.unstack(state, axis=-1)
        w = {name: tf.cast(getattr(self, name), self.compute_dtype) for name in self._parameters}
        return self.cell.output(
            tf.cast(x, self.compute_dtype), tuple(tf.cast(s, self.compute_dtype) for s in states), w
        )

    # For loops that own their update (keras_rtrl.engine.streaming).

    def recurrent_weights(self) -> dict[str, Any]:
        """The weights that RTRL trains, by name: "kernel" [D, G N] and each per-unit parameter [N]; when built."""
        return {name: getattr(self, name) for name in ("kernel", *self.cell.unit_names)}

    def get_config(self) -> dict[str, Any]:
        config = {"cell": keras.saving.serialize_keras_object(self.cell), **self._common_config()}
        return {**super().get_config(), **config}

    def _common_config(self):
        config = {
            "gradient": self.gradient,
            "implementation": self.implementation,
            "zero_output_for_mask": self.zero_output_for_mask,
            "trace_dtype": self._given_trace_dtype,
        }
        for kind in ("initializer", "regularizer", "constraint"):
            serialize = getattr(keras, f"{kind}s").serialize
            for role in ROLES:
                value = getattr(self, f"{role}_{kind}")
                config[f"{role}_{kind}"] = None if value is None else serialize(value)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "RTRL":
        config = dict(config)
        config["cell"] = deserialize(config["cell"], custom_objects)
        return cls(**config)


def _keras_object(role, kind, value):
    """Keras' initialiser, regulariser or constraint that `value` names or is; None: none."""
    wrong = f"{role}_{kind} must be a keras {kind}, got {shown(value)}"
    try:
        found = getattr(keras, f"{kind}s").get(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wrong}.") from error
    if not (found is None or callable(found)):  # tf-keras returns regularisers' names that it does not know
        raise ValueError(f"{wrong}.")
    return found


class NamedRTRL(RTRL):
    """Base of the layers that are `RTRL` of one cell, with that cell's arguments by name."""

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["cell"]
        return {**config, **self.cell.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "NamedRTRL":
        return cls(**config)
