"""RTRLStack: RTRL layers above each other, with feed-forward layers between, as one layer."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_rtrl._checks import flag, shown
from keras_rtrl._keras import deserialize, keras, register
from keras_rtrl.engine import Carry
from keras_rtrl.layers.recurrent import Recurrent, Shape, build
from keras_rtrl.layers.rtrl import RTRL

_CONVOLUTIONS = tuple(
    getattr(keras.layers, name) for name in ("Conv1D", "Conv1DTranspose", "DepthwiseConv1D", "SeparableConv1D")
)
_STEPS = 97  # of sequences that stateless layers are asked about


@register
class RTRLStack(Recurrent):
    """RTRL layers above each other as one recurrent layer with one carry.

    Its gradient (rtrl-math.md, section 8) is exact for the uppermost RTRL layer's own parameters and for all that
    follows them. For what lies below it is exact inside the call, plus each RTRL layer's history in its own state. What
    is dropped at the call's start is the influence of lower parameters on the states that upper layers carry;
    `docs/exactness.md` has the table, and `keras_rtrl.testing.TwoLayerRTRL` measures it for small nets.

    Example:

    >>> core = RTRLStack([ELSTM(64), Dropout(0.1), ELSTM(64)], residual=True, norm=True, gate=True, stateful=True)

    Args:
      layers: from below: RTRL layers (at least one), and stateless keras layers that act on each step alone (Dense,
        Dropout, LayerNormalization, ...). The stack runs all steps of every RTRL layer and ignores its
        `return_sequences`; `stateful`, `return_state` and `zero_output_for_mask` are refused in it. No layer may come
        twice.
      residual: add an RTRL layer's input to its output (after `gate`). Their widths must agree, which `gate` sees to.
      norm: normalise each RTRL layer's input: LayerNormalization inside the residual connection.
      gate: a gated linear unit after each RTRL layer, back to the width W of its input:
        `Dense(W)(y) * Dense(W, activation="sigmoid")(y)`.
      return_sequences: whether to return the output of every step or of the last.
      return_state: whether to return, after the output, the carry, flat, layer after layer: state_1 [B, N, m],
        S_1 [B, D, G', N, m], r_1 [B, P, N, m], state_2, ...
      stateful: keep the carry from call to call, as `RTRL` does.
      go_backwards: False; it is here to be refused, as by Bidirectional.
      **kwargs: of `keras.layers.Layer`; `dtype` is that of what the stack itself makes, and of its output.

    Call arguments:
      sequences: [B, T, D], floating.
      initial_state: the states alone, one an RTRL layer: no traces are made, and the states alone come back with
        `return_state`; or the whole carry. Its gradient is zero. Refused by a stateful stack.
      mask: [B, T] bool. Where false, every state and trace passes through and the output of the step before is held.
      training: as of `RTRL`; stateless layers see it as in any model.
      reset: [B, T] bool, true if a new episode starts with that step: every state and trace before it is zeroed.

    Output shape: [B, T, W] or [B, W], W the last layer's width.

    Raises:
      TypeError: `layers` holds something that is no keras layer, or `sequences` is not floating.
      ValueError: any other argument, or tensor shape, that does not fit.
    """

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer],
        *,
        residual: bool = False,
        norm: bool = False,
        gate: bool = False,
        return_sequences: bool = False,
        return_state: bool = False,
        stateful: bool = False,
        go_backwards: bool = False,
        **kwargs: Any,
    ):
        _check_layers(layers)
        residual, norm, gate = flag("residual", residual), flag("norm", norm), flag("gate", gate)
        super().__init__(return_sequences, return_state, stateful, go_backwards, **kwargs)
        self.layers = list(layers)
        self.residual, self.norm, self.gate = residual, norm, gate
        self._norms, self._values, self._gates = [], [], []
        for i, layer in enumerate(self.layers):
            setattr(self, f"_layer_{i}", layer)  # Keras 3 leaves lists out of tf.train.Checkpoint

    def _recurrent_layers(self):
        return [layer for layer in self.layers if isinstance(layer, RTRL)]

    @property
    def output_size(self) -> int:
        """Width of the output; of a built stack."""
        self._require_built("output_size")
        return self._width(self._input_dim)

    def _widths(self, width):
        """(layer, width of its input) from below, and (None, width of the output) at the end."""
        for i, layer in enumerate(self.layers):
            yield layer, width
            if isinstance(layer, RTRL):
                given, width = width, width if self.gate else layer.output_size
                if self.residual and width != given:
                    raise ValueError(
                        f"residual: layers[{i}] ({layer.name}) has an input of width {given} and an output of width "
                        f"{width}; they must agree, or gate=True brings them together."
                    )
                continue
            shape = tuple(layer.compute_output_shape((None, _STEPS, width)))
            if len(shape) != 3 or shape[1] != _STEPS or shape[2] is None:
                raise ValueError(
                    f"layers[{i}] ({layer.name}) must act on each step alone: [batch, time, features] to the same; its "
                    f"output has shape {shape}."
                )
            width = int(shape[2])
        yield None, width

    def _input_widths(self, width):
        return [given for layer, given in self._widths(width) if isinstance(layer, RTRL)]

    def _width(self, width):
        return list(self._widths(width))[-1][1]

    def build(
        self,
        sequences_shape: Shape,
        initial_state_shape: Shape | Sequence[Shape] | None = None,
        reset_shape: Shape | None = None,
    ) -> None:
        dim = self._shape_of_features(sequences_shape)
        if self.built:
            return
        widths = list(self._widths(dim))
        for i, (layer, width) in enumerate(widths[:-1]):
            if not isinstance(layer, RTRL):
                build(layer, width)
                continue
            if layer.built and layer._input_dim != width:
                raise ValueError(
                    f"layers[{i}] ({layer.name}) was built for {layer._input_dim} features and gets {width} here."
                )
            if self.norm:
                self._norms.append(self._made(f"norm_{i}", keras.layers.LayerNormalization, width))
            build(layer, width)
            if self.gate:
                made = functools.partial(self._made, kind=keras.layers.Dense, width=layer.output_size, units=width)
                self._values.append(made(f"value_{i}"))
                self._gates.append(made(f"gate_{i}", activation="sigmoid"))
        self._input_dim = dim
        super().build(sequences_shape)

    def _made(self, name, kind, width, **options):
        """A layer of the stack's own, built for an input of `width` features."""
        layer = kind(name=name, dtype=self.dtype_policy, **options)
        setattr(self, f"_{name}", layer)
        build(layer, width)
        return layer

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
        traces = traces or [carry.has_traces for carry in carries]
        new = []

        def own(layer, h):
            i = len(new)
            states, carry = (recur or type(layer).recur)(layer, h, carries[i], reset, mask, traces[i])
            new.append(carry)
            return states

        return self.wire(x, own, mask=mask, only_last=self._only_last(mask)), new

    def wire(
        self, x: tf.Tensor, recur: Callable, *, mask: tf.Tensor | None = None, only_last: bool = False
    ) -> tf.Tensor:
        """Output of the stack around recurrences that are computed elsewhere.

        Args:
          x: [B, T, D].
          recur: function of an RTRL layer and its input [B, T, W] to its states, m tensors [B, T, N].
          mask: [B, T] bool or None, for those stateless layers that take one.
          only_last: whether the last step's output suffices; not with a mask.

        Returns:
          [B, T, W], or [B, 1, W] if `only_last`.
        """
        h = tf.cast(x, self.compute_dtype)
        recurrent = self._recurrent_layers()
        for layer in self.layers:
            if not isinstance(layer, RTRL):
                takes_mask = mask is not None and "mask" in inspect.signature(layer.call).parameters
                h = layer(h, mask=mask) if takes_mask else layer(h)
                continue
            i, below = recurrent.index(layer), h
            h = self._norms[i](h) if self.norm else h
            states = recur(layer, h)
            if only_last and layer is recurrent[-1]:
                below, h, states = below[:, -1:], h[:, -1:], tuple(s[:, -1:] for s in states)
            h = tf.cast(layer.read_out(h, states), self.compute_dtype)
            if self.gate:
                h = self._values[i](h) * self._gates[i](h)
            if self.residual:
                h += tf.cast(below, self.compute_dtype)
        return tf.cast(h, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layers": [_serialized(layer) for layer in self.layers],
            "residual": self.residual,
            "norm": self.norm,
            "gate": self.gate,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "RTRLStack":
        layers = [deserialize(layer, custom_objects) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})


def _serialized(layer):
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)  # the stack builds its layers, to its own input's width
    return config


def _check_layers(layers):
    if not isinstance(layers, (list, tuple)):
        raise TypeError(f"layers must be a list of layers, got {type(layers).__name__}.")
    for i, layer in enumerate(layers):
        what = f"layers[{i}] ({type(layer).__name__})"
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"layers[{i}] must be a keras layer, got {type(layer).__name__}: {shown(layer)}.")
        if any(layer is other for other in layers[:i]):
            raise ValueError(f"{what} comes twice; each layer has its own place.")
        if isinstance(layer, RTRL):
            for name in ("stateful", "return_state", "zero_output_for_mask"):
                if getattr(layer, name):
                    raise ValueError(f"{what}: {name} must be False inside a stack, which has its own.")
            if layer.activity_regularizer is not None:
                raise ValueError(f"{what}: activity_regularizer must be None inside a stack; give it to the stack.")
            continue
        for inner in layer._flatten_layers():
            if isinstance(inner, (Recurrent, keras.layers.RNN)):
                raise ValueError(f"{what} must be an RTRL layer or have no state: it holds a recurrent layer.")
            if isinstance(inner, _CONVOLUTIONS) and max(inner.kernel_size) > 1:
                raise ValueError(
                    f"{what} must act on each step alone: its kernel_size must be 1, got {max(inner.kernel_size)}; "
                    "over more steps it would look past resets, and begin anew with each chunk."
                )
    if not any(isinstance(layer, RTRL) for layer in layers):
        raise ValueError(f"layers must hold at least one RTRL layer, got {[type(layer).__name__ for layer in layers]}.")
