"""The carries that a stateful layer keeps from call to call, and control over them."""

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_rtrl._checks import fits_memory, flag, machine_memory, shown, whole_number
from keras_rtrl.engine import Carry, carry_shapes

CARRIES = ("_training_carry", "_inference_carry")  # attributes of a layer
SHARE = 0.25  # of the machine's memory, from which on a carry gets a warning


class Entry(NamedTuple):
    """One tensor of a carry.

    Attributes:
      name: "state", "S" or "r"; in a stack with the layer's number: "state_1", ...
      shape: without the batch dimension.
      dtype: its name.
    """

    name: str
    shape: tuple
    dtype: str


class Chosen(NamedTuple):
    """The carries that a call begins with, and what becomes of those after it.

    Attributes:
      carries: a `Carry` for each recurrent layer.
      keep: function of the carries after the call; returns those that the layer returns with `return_state`.
      traces: for each recurrent layer, whether its new carry has traces; None: those have whose carry has.
      reset: [B, T] bool or None.
      recur: as `Recurrent.unroll`.
    """

    carries: list
    keep: Callable
    traces: list | None = None
    reset: tf.Tensor | None = None
    recur: Callable | None = None


_elsewhere = threading.local()


@contextlib.contextmanager
def chosen_by(choose):
    """Inside, carries come from elsewhere and go there: layers neither take their own nor move them.

    Args:
      choose: function of a layer and of x [B, T, D], initial_state and reset of its call; returns `Chosen`, or None if
        the layer chooses.
    """
    before = getattr(_elsewhere, "choose", None)
    _elsewhere.choose = tf.autograph.experimental.do_not_convert(choose)
    try:
        yield
    finally:
        _elsewhere.choose = before


def chosen_elsewhere(layer, x, initial_state, reset):
    """What the function of `chosen_by` chooses for a call; None if there is none, or if it leaves that to the layer."""
    choose = getattr(_elsewhere, "choose", None)
    return None if choose is None else choose(layer, x, initial_state, reset)


class KeepsCarry:
    """Part of a layer: its carry as a flat tuple, and if it is stateful the two carries that it keeps.

    The layer gives `_recurrent_layers`, its RTRL layers from below, `return_state` and `stateful`, and sets
    `_training_carry` and `_inference_carry` to None: tf-keras tracks no attribute that its class has too.
    """

    def get_carry(self, training: bool = True) -> tuple[np.ndarray, ...]:
        """The carry that this stateful layer keeps.

        Args:
          training: False for the inference state, which has no traces.

        Returns:
          Arrays, in the order in which `return_state` gives the carry; without traces if none are kept
          (gradient="tbptt" or "instant", and no return_state).

        Raises:
          ValueError: the layer is not stateful, or was not called yet.
        """
        kind = self._kind(training)
        holder = getattr(self, f"_{kind}_carry")
        if holder is None:
            raise ValueError(f"There is no {kind} carry yet: call the layer, or set_carry() first.")
        return tuple(np.array(variable) for variable in self._kept(kind, holder).values())

    def set_carry(self, values: Sequence[ArrayLike], training: bool = True) -> None:
        """Replaces the carry that this stateful layer keeps.

        Before the first call it makes the carry, with as many streams as the values have.

        Args:
          values: arrays as `get_carry` returns them, all of one batch size.
          training: False for the inference state.

        Raises:
          ValueError: the layer is not stateful or not built, or the values do not fit or are not finite.
        """
        self._replace_carry("values", values, training)

    def reset_state(self, streams: ArrayLike | None = None, training: bool | None = None) -> None:
        """Zeroes the carries that a stateful layer keeps.

        Args:
          streams: None: all; or the streams to zero: their indices, or a bool array [B].
          training: None: the training carry and the inference state; True or False: one of them.

        Raises:
          ValueError: there is no such stream; `training` is something else, or it is None, `streams` are given and the
            two carries have different numbers of them; or, inside a tf.function, there is no such carry yet.
        """
        training = _valued(known_training(training))
        kinds = ("training", "inference") if training is None else (self._carry_kind(training),)
        kept = [self._kept(kind, getattr(self, f"_{kind}_carry")) for kind in kinds]
        if self.stateful and not tf.executing_eagerly() and not all(kept):
            kind = kinds[kept.index({})]
            raise ValueError(
                f"reset_state() inside a function would leave out the {kind} carry, which {self.name} does not have "
                "yet: call the layer first, or choose one carry by training=True or False."
            )
        sizes = [next(iter(carry.values())).shape[0] for carry in kept if carry]
        if streams is not None and len(set(sizes)) > 1:
            raise ValueError(
                f"training must be True or False to choose streams here: the training carry has {sizes[0]} of them and "
                f"the inference state {sizes[1]}."
            )
        variables = [variable for carry in kept for variable in carry.values()]
        keep = [None if streams is None else _others(streams, variable.shape[0]) for variable in variables]
        for variable, kept in zip(variables, keep, strict=True):
            if kept is None:
                variable.assign(tf.zeros_like(variable))
            else:
                kept = kept.reshape(-1, *(1,) * (variable.shape.rank - 1))
                variable.assign(tf.where(kept, variable, tf.zeros_like(variable)))

    def reset_states(self, states: Sequence[ArrayLike] | None = None) -> None:
        """Zeroes the carries, as tf-keras' `RNN.reset_states`; the training carry becomes `states` if they are given.

        Args:
          states: as `set_carry` takes them.

        Raises:
          ValueError: as of `set_carry`.
        """
        if states is None:
            self.reset_state()
        else:
            self._replace_carry("states", states, True)
            self.reset_state(training=False)

    def carry_bytes(self, batch_size: int) -> int:
        """Bytes of the training carry of `batch_size` streams: state, and traces if they are carried.

        A training step under a tape holds two such carries, the old and the new one.

        Raises:
          ValueError: the layer is not built.
        """
        batch_size = whole_number("batch_size", batch_size)
        self._require_built("carry_bytes()")
        return _bytes(self._entries(), batch_size)

    def get_initial_state(self, batch_size: int | tf.Tensor, traces: bool = False) -> tuple[tf.Tensor, ...]:
        """Zero carry: states alone, or with `traces` the whole carry, for which the layer must be built."""
        if flag("traces", traces):
            self._require_built("get_initial_state(traces=True)")
        entries = self._entries(traces)
        if not tf.is_symbolic_tensor(batch_size):
            batch_size = batch_size.numpy() if tf.is_tensor(batch_size) else batch_size
            batch_size = whole_number("batch_size", batch_size, low=0)
            fits_memory(f"batch_size: a carry of {batch_size} streams", _bytes(entries, batch_size))
        elif batch_size.shape.rank not in (0, None) or not batch_size.dtype.is_integer:
            raise ValueError(f"batch_size must be one whole number, got {shown(batch_size)}.")
        return tuple(tf.zeros((batch_size, *e.shape), e.dtype) for e in entries)

    def initial_carries(self, batch_size: int | tf.Tensor, traces: bool = False) -> tuple[Carry, ...]:
        """`get_initial_state` as a tuple of `Carry`, one for each recurrent layer."""
        values = self.get_initial_state(batch_size, traces)
        names = [entry.name for entry in self._entries(traces)]
        return tuple(self._by_layer(dict(zip(names, values, strict=True))))

    # For the layer itself.

    def _replace_carry(self, what, values, training):
        kind = self._kind(training)
        self._require_built("set_carry()")
        entries = self._entries(None if kind == "training" else False)
        names = [entry.name for entry in entries]
        if not isinstance(values, (list, tuple)) or len(values) != len(entries):
            got = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
            raise ValueError(f"{what} must be a tuple of {len(entries)}, {', '.join(names)}; got {got}.")
        values = [np.asarray(value) for value in values]
        holder = getattr(self, f"_{kind}_carry")
        batch = next(iter(self._kept(kind, holder).values())).shape[0] if holder else (*values[0].shape, 0)[0]
        for entry, value in zip(entries, values, strict=True):
            if batch < 1 or value.shape != (batch, *entry.shape):
                wanted = (batch if batch else "batch", *entry.shape)
                raise ValueError(f"{what}: {entry.name} must have shape {wanted}, got {value.shape}.")
            if value.dtype.kind not in "fiu":
                raise ValueError(f"{what}: {entry.name} must be numbers, got {value.dtype.name}.")
        with np.errstate(over="ignore"):  # too large for the carry's dtype: infinite there
            values = [value.astype(entry.dtype) for entry, value in zip(entries, values, strict=True)]
        for entry, value in zip(entries, values, strict=True):
            if not np.isfinite(value).all():
                raise ValueError(f"{what}: {entry.name} must be finite in {entry.dtype}, and is not everywhere.")
        own = self._own_carry(batch, kind == "training")
        for variable, value in zip(own.values(), values, strict=True):
            variable.assign(value)

    def _entries(self, traces=None, widths=None):
        """Entries of the carry: with traces, without, or (None) as the training carry is kept.

        `widths` are those of the recurrent layers' inputs; None: as they were built for.
        """
        entries = []
        widths = widths or [layer._input_dim for layer in self._recurrent_layers()]
        for layer, suffix, width in zip(self._recurrent_layers(), self._suffixes, widths, strict=True):
            wanted = (layer.gradient == "rtrl" or self.return_state) if traces is None else traces
            shapes = carry_shapes(layer.cell, width)
            for field, shape in list(zip(Carry._fields, shapes, strict=True))[: None if wanted else 1]:
                entries.append(Entry(field + suffix, shape, layer.trace_dtype))
        return entries

    @property
    def _suffixes(self):
        return [("" if layer is self else f"_{i}") for i, layer in enumerate(self._recurrent_layers(), 1)]

    def _by_layer(self, named):
        """One `Carry` a recurrent layer of a carry by name."""
        return [Carry(*(named.get(field + suffix, ()) for field in Carry._fields)) for suffix in self._suffixes]

    def kept_carries(self) -> list[Carry] | None:
        """The training carry of a stateful layer: a `Carry` of tensors for each recurrent layer. None: not made yet."""
        if self._training_carry is None:
            return None
        kept = self._kept("training", self._training_carry)
        return self._by_layer({name: tf.convert_to_tensor(variable) for name, variable in kept.items()})

    def _own_carry(self, batch, training):
        """Variables by name of the carry that this call continues: the inference state if training is False."""
        kind = self._carry_kind(training)
        if getattr(self, f"_{kind}_carry") is None:
            entries = self._entries(None if kind == "training" else False)
            if kind == "training":
                self._warn_of(batch)
            with tf.init_scope():
                # A holder, so that checkpoints track the variables and the layer's weights do not include them.
                holder = tf.train.Checkpoint(
                    **{
                        e.name: tf.Variable(
                            tf.zeros((batch, *e.shape), e.dtype), trainable=False, name=f"{kind}_{e.name}"
                        )
                        for e in entries
                    }
                )
                setattr(self, f"_{kind}_carry", holder)  # a checkpoint restored before now fills it here
        own = self._kept(kind, getattr(self, f"_{kind}_carry"))
        streams = next(iter(own.values())).shape[0]
        if streams != batch:
            raise ValueError(
                f"sequences has a batch of {batch}, and the carry kept by this stateful layer has {streams} streams."
            )
        return own

    def _kept(self, kind, holder):
        names = [entry.name for entry in self._entries(None if kind == "training" else False)] if holder else []
        return {name: getattr(holder, name) for name in names if hasattr(holder, name)}

    def _carry_kind(self, training):
        return "inference" if training is False else "training"

    def _kind(self, training):
        known = _valued(known_training(training, "True or False"))
        if not self.stateful:
            raise ValueError("Only a layer with stateful=True keeps a carry; others take and return theirs.")
        return self._carry_kind(known)

    def _require_built(self, what):
        if not self.built:
            raise ValueError(f"{what} needs a built layer: the traces' shape depends on the input's.")

    def _check_memory(self, batch):
        """Refuses a whole carry that is larger than the memory."""
        fits_memory(f"{self.name}: a carry of {batch} streams", _bytes(self._entries(True), batch))

    def _warn_of(self, batch):
        size, memory = self.carry_bytes(batch), machine_memory()
        fits_memory(f"{self.name}: a carry of {batch} streams", size)
        if size > SHARE * memory:
            warnings.warn(
                f"{self.name}: the training carry of {batch} streams takes {size / 2**30:.3g} GiB of this machine's "
                f"{memory / 2**30:.3g} GiB, and a training step holds it twice. Fewer streams, units or inputs take "
                "less.",
                stacklevel=2,
            )


def _bytes(entries, batch):
    return batch * sum(math.prod(e.shape) * tf.as_dtype(e.dtype).size for e in entries)


def known_training(training, wanted="True, False or None"):
    """None, a bool, or a symbolic bool tensor, from what is given as `training`.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(training, bool) or (training is None and "None" in wanted):
        return training
    value = training
    if tf.is_tensor(value) or isinstance(value, (int, np.ndarray, np.generic)):
        value = tf.convert_to_tensor(value)
        if value.shape.rank in (0, None) and (value.dtype.is_bool or value.dtype.is_integer):
            if tf.is_symbolic_tensor(value):
                return tf.cast(value, tf.bool)
            if value in (0, 1) if value.dtype.is_integer else True:
                return bool(value)
    raise ValueError(f"training must be {wanted}, got {shown(training)}.")


def _valued(training):
    if tf.is_tensor(training):
        raise ValueError(f"training must have a value here, got {shown(training)}.")
    return training


def _others(streams, batch):
    """Bool array [batch], false for `streams`: indices, or a bool array [batch]."""
    wanted = f"streams must be None, indices below {batch} or a bool array [{batch}]"
    if tf.is_symbolic_tensor(streams):
        raise ValueError(f"{wanted}, got a tensor without a value; inside functions there is the argument reset.")
    given = np.asarray(streams)
    if given.dtype == bool:
        if given.shape != (batch,):
            raise ValueError(f"{wanted}, got a bool array of shape {given.shape}.")
        return ~given
    indices = np.atleast_1d(given)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise ValueError(f"{wanted}, got {shown(streams)}.")
    if indices.size and not (0 <= indices.min() and indices.max() < batch):
        raise ValueError(f"{wanted}, got {shown(streams)}.")
    keep = np.ones(batch, bool)
    keep[indices.astype(int)] = False
    return keep
