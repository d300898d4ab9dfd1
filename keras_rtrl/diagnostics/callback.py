"""The callback for `model.fit` that writes the figures to TensorBoard."""

import collections
import contextlib
import importlib.util
import itertools
import os
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_rtrl._checks import flag, shown, whole_number
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.diagnostics import figures
from keras_rtrl.diagnostics.worth import GradientWorth, reach
from keras_rtrl.layers.carry import Chosen, chosen_by
from keras_rtrl.layers.recurrent import Recurrent


class RTRLDiagnostics(keras.callbacks.Callback):
    """Writes TensorBoard scalars about each stateful RTRL layer, also those in an `RTRLStack`, while `model.fit` runs.

    It writes once in `every` batches, before the model trains on the batch, at the optimiser's step:

    - `<layer>/trace_norm/<gate or parameter>`: Frobenius norm of a stream's traces, averaged over streams.
    - `<layer>/memory_length/median` and `/q90`: effective memory length in steps over the layer's units, from the J of
      the batch (`keras_rtrl.diagnostics.memory_length`).
    - `<layer>/staleness/cosine_over_<K>_chunks`: cosine between two gradients of the compiled loss on the last of
      K batches, with respect to the layer's recurrent weights. The first comes from the carry. For the second the
      K - 1 batches before run again under the present weights, from zero traces and the state that was carried when
      the first of them began. So the part of the traces from before the K batches, unless a reset ended it, counts as
      a difference too. 1: nothing is stale.
    - With `worth`, `<layer>/worth/tbptt_<k>` and `/rtrl`: cosines with the exact gradient over the K batches, of TBPTT
      that reaches back k = 1, 2, 4, ... steps, and of RTRL with the carried traces; all at the replayed states.
      `/reach`: the k from which on TBPTT(k) has at least 0.99, absent if none has. `/noise`: the exact gradient's
      standard error over streams, over its norm. `GradientWorth` defines them. Other layers' states carry a layer's
      gradient inside the last batch alone.

    Layers of a stack are named `<stack>/<number>`, the lowest first. The model runs here as in inference, without
    dropout and with the moving averages of normalisation, but with the carry of training. If such layers lie below a
    recurrent one, its staleness includes that difference. Weights, carries, the optimiser, metrics and random seeds
    stay as they are.

    Example:

    >>> chunks = keras_rtrl.data.stream_chunks(sequences, targets, batch_size=8, chunk=50)
    >>> model.fit(chunks, shuffle=False, callbacks=[RTRLDiagnostics("logs", data=chunks, chunks=4, every=100)])

    Args:
      log_dir: folder of the event files.
      data: the `tf.data.Dataset` that `fit` gets. It must give the same batches at every iteration, since it is read a
        second time, in step with training. None: only trace norms are written.
      chunks: K, at least 2. The K last batches are kept in memory.
      every: batches between two measurements, over all calls of `fit`.
      worth: whether to measure how far back the gradient reaches. It takes about as long as K T batches of 2 K T
        steps each on `GradientWorth.STREAMS` streams.

    Raises:
      TypeError: `log_dir` or `data` is of another kind.
      ValueError: `chunks`, `every` or `worth` does not fit, or `log_dir` is a file. When training begins: the model has
        no stateful RTRL layer, or with `data` several steps are run in one execution, or on several replicas.
      ImportError: tensorboard is not installed.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        data: tf.data.Dataset | None = None,
        *,
        chunks: int = 4,
        every: int = 100,
        worth: bool = False,
    ):
        if not isinstance(log_dir, (str, os.PathLike)) or not os.fspath(log_dir):
            raise TypeError(f"log_dir must be a path, got {shown(log_dir)}.")
        if os.path.exists(log_dir) and not os.path.isdir(log_dir):
            raise ValueError(f"log_dir must be that of a folder, and {shown(log_dir)} is a file.")
        if data is not None and not isinstance(data, tf.data.Dataset):
            raise TypeError(f"data must be the tf.data.Dataset that fit is given, or None, got {type(data).__name__}.")
        self.chunks = whole_number("chunks", chunks, low=2)
        self.every = whole_number("every", every)
        self.worth = flag("worth", worth)
        if self.worth and data is None:
            raise ValueError("worth must be False without data, got True.")
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError("RTRLDiagnostics needs tensorboard, which is not installed: pip install tensorboard")
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self.data = data
        self._seen = 0
        self._writer = None

    # What Keras calls.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        self._layers = [x for x in model._flatten_layers() if isinstance(x, Recurrent) and x.stateful]
        if not self._layers:
            raise ValueError("RTRLDiagnostics: the model must have an RTRL layer with stateful=True, and has none.")
        names = [layer.name for layer in self._layers]
        if len(set(names)) < len(names):
            raise ValueError(f"RTRLDiagnostics: stateful RTRL layers must have different names, got {names}.")
        if self.data is not None:
            executed = int(model._steps_per_execution if LEGACY else model.steps_per_execution)
            if executed != 1 or getattr(model, "autotune_steps_per_execution", False):
                raise ValueError("RTRLDiagnostics: the model must be compiled with steps_per_execution=1.")
            replicas = model.distribute_strategy.num_replicas_in_sync
            if replicas > 1:
                raise ValueError(f"RTRLDiagnostics: data must be None if training runs on {replicas} replicas.")
        self._window = collections.deque(maxlen=self.chunks)
        self._batches = None
        self._trained = True  # whether the window's last batch was
        self._foreseen, self._meters = None, {}
        # Made again for each fit, since the model may have been compiled again.
        self._advance, self._differentiate = tf.function(self._advance_chunk), tf.function(self._differentiate_chunk)
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        carries = [layer.kept_carries() for layer in self._layers]
        if self.data is not None:
            # At the end of its data fit may find that it has no batch. Then it did not train: this batch is the next.
            values = self._read() if self._trained else self._window.pop().values
            self._window.append(_Chunk(values, [_states(carry) for carry in carries]))
            self._trained = False
        if self._seen and self._seen % self.every == 0 and all(carries):
            scalars = self._trace_norms(carries)
            if self.data is not None:
                with _unchanged(self.model):
                    scalars.update(self._of_chunk(carries))
            with self._writer.as_default(), tf.summary.record_if(True):
                for name, value in scalars.items():
                    tf.summary.scalar(name, value, step=int(self.model.optimizer.iterations))
            self._writer.flush()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._seen += 1
        self._trained = True
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is None:
            return
        for layer, old, new in zip(self._layers, self._window[-1].states, foreseen, strict=True):
            got = _states(layer.kept_carries())
            if any(tf.norm(g - n) > 0.1 * tf.norm(g - o) for g, n, o in zip(got, new, old, strict=True)):
                warnings.warn(
                    f"RTRLDiagnostics: {layer.name} ended a batch in another state than that batch of data leads to. "
                    "Unless layers below it draw at random (dropout) or the carry was set meanwhile, data does not "
                    "repeat the batches of fit, and memory lengths and staleness are of others.",
                    stacklevel=2,
                )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._writer.close()
        self._window.clear()

    def _read(self):
        """The next batch; starts again at the end of the data."""
        self._batches = iter(self.data) if self._batches is None else self._batches
        values = next(self._batches, None)
        if values is None:
            self._batches = iter(self.data)
            values = next(self._batches, None)
        if values is None:
            raise ValueError("RTRLDiagnostics: data must have at least one batch, and has none.")
        return values

    # Figures by tag.

    def _trace_norms(self, carries):
        scalars = {}
        for layer, carry in zip(self._layers, carries, strict=True):
            for name, child, own in _recurrent(layer, carry):
                if own.has_traces:
                    names = (*child.cell.stored_gates, *child.cell.unit_names)
                    norms = [*figures.trace_norms(tf.transpose(own.S, (0, 2, 1, 3, 4))), *figures.trace_norms(own.r)]
                    scalars.update({f"{name}/trace_norm/{n}": norm for n, norm in zip(names, norms, strict=True)})
        return scalars

    def _of_chunk(self, carries):
        """Memory lengths and staleness, of the window's last chunk."""
        chunks, scalars = list(self._window), {}
        carried = self._differentiate(carries, chunks[-1].values)
        self._foreseen = carried.states
        for name, ratio in carried.ratios.items():
            lengths = figures.memory_length(ratio)
            scalars[f"{name}/memory_length/median"] = np.median(lengths)
            scalars[f"{name}/memory_length/q90"] = np.quantile(lengths, 0.9)
        if len(chunks) < self.chunks or not (carried.gradients or self.worth):
            return scalars
        fresh, inputs = self._replayed(chunks, carries)
        anew = self._differentiate(fresh, chunks[-1].values)
        for name, gradient in carried.gradients.items():
            norms = tf.norm(gradient) * tf.norm(anew.gradients[name])
            if norms > 0:
                cosine = tf.reduce_sum(gradient * anew.gradients[name]) / norms
                scalars[f"{name}/staleness/cosine_over_{self.chunks}_chunks"] = cosine
        if self.worth:
            scalars.update(self._worths(chunks, carries, [*inputs, anew.inputs], anew.cotangents))
        return scalars

    def _replayed(self, chunks, carries):
        """The carries before the last chunk, computed again from the state before the first chunk and zero traces.

        Also the recurrent layers' inputs in each of the chunks before the last, by name.
        """
        first, inputs = chunks[0].states, []
        carries = [_without_history(own, states) for own, states in zip(carries, first, strict=True)]
        for chunk, after in itertools.pairwise(chunks):
            carries, seen = self._advance(carries, chunk.values)
            inputs.append(seen)
            # A stream whose state is zero between two chunks was reset there by hand.
            carries = [_kept(own, states) for own, states in zip(carries, after.states, strict=True)]
        return carries, inputs

    def _worths(self, chunks, carries, inputs, cotangents):
        """Figures of `GradientWorth` for each recurrent layer, from its inputs in all chunks."""
        scalars = {}
        for place, (layer, carry) in enumerate(zip(self._layers, carries, strict=True)):
            states = [chunk.states[place] for chunk in chunks]
            start = _without_history(carry, states[0])
            for (name, child, own), (_, _, begin) in zip(
                _recurrent(layer, carry), _recurrent(layer, start), strict=True
            ):
                parts = [_reset_by_hand(seen[name], before) for seen, before in zip(inputs, states, strict=True)]
                whole = tuple(tf.concat(part, 1) for part in zip(*parts, strict=True))
                meter = self._meters.setdefault(name, _meter(child))
                fresh = meter.states(whole, begin.without_traces())
                past = whole[0].shape[1] - cotangents[name].shape[1]
                rtrl = {}
                if own.has_traces:
                    rtrl = {"rtrl": (own._replace(state=fresh.state[:, past]), cotangents[name])}
                found = meter.measure(whole, fresh, cotangents[name], steps=past + 1, carried=rtrl)
                scalars.update({f"{name}/worth/{e.name}": e.cosine for e in found[1:]})
                scalars[f"{name}/worth/noise"] = found[0].noise
                if (reached := reach(found)) is not None:
                    scalars[f"{name}/worth/reach"] = reached
        return scalars

    # What runs the model; the carries go in and come out as values.

    def _advance_chunk(self, carries, values):
        """The carries after the chunk, and the inputs of the recurrent layers by name."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(values)
        seen, carries = {}, list(carries)

        def recur(name, child, x, carry, reset, mask, traces):
            seen[name] = _inputs(x, reset, mask)
            return child.recur(x, carry, reset, mask, traces)

        with chosen_by(self._chooses(carries, recur)):
            self.model(x, training=False)
        return carries, seen

    def _differentiate_chunk(self, carries, values):
        """A `_Measured` of the chunk."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(values)
        layers = [
            entry for layer, carry in zip(self._layers, carries, strict=True) for entry in _recurrent(layer, carry)
        ]
        ratios, inputs, nothing, carries = {}, {}, {}, list(carries)
        weights = {
            name: list(_weights(child).values())
            for name, child, carry in layers
            if carry.has_traces and child.gradient == "rtrl"
        }

        def recur(name, child, x, carry, reset, mask, traces):
            states, new = child.recur(x, carry, reset, mask, traces)
            ratios[name], inputs[name] = _decay(child, x, carry, reset, mask, states), _inputs(x, reset, mask)
            # The loss's gradient with respect to these zeros is that at the states.
            nothing[name] = tuple(tf.zeros_like(s) for s in states)
            tape.watch(nothing[name])
            return tuple(s + zero for s, zero in zip(states, nothing[name], strict=True)), new

        with tf.GradientTape() as tape:
            tape.watch(weights)
            with chosen_by(self._chooses(carries, recur)):
                y_pred = self.model(x, training=False)
            loss = self.model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
            # Both gradients would have the regularisers' in common.
            penalties = [penalty for name, child, _ in layers if name in weights for penalty in _penalties(child)]
            loss -= tf.add_n([tf.cast(p, loss.dtype) for p in penalties]) if penalties else 0.0
        gradients, cotangents = tape.gradient(
            loss, (weights, nothing), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = {name: tf.concat([tf.reshape(g, [-1]) for g in parts], 0) for name, parts in gradients.items()}
        cotangents = {name: tf.concat(parts, -1) for name, parts in cotangents.items()}
        return _Measured(gradients, ratios, [_states(own) for own in carries], inputs, cotangents)

    def _chooses(self, carries, recurrence):
        """A function for `chosen_by`: stateful layers take their carries from the list, and put new ones there.

        `recurrence` is a function of a recurrent layer's name and of the arguments of `Recurrent.unroll`'s `recur`.
        """

        def choose(layer, x, initial_state, reset):
            if layer not in self._layers:
                return None
            place = self._layers.index(layer)
            names = {id(child): name for name, child, _ in _recurrent(layer, carries[place])}

            def keep(new):
                carries[place] = new
                return layer.completed(new) if layer.return_state else new

            def recur(child, *given):
                return recurrence(names[id(child)], child, *given)

            return Chosen(carries[place], keep, reset=reset, recur=recur)

        return choose


class _Measured(NamedTuple):
    """What is measured of a chunk; each but `states` is by layer name.

    Attributes:
      gradients: with respect to the recurrent weights, flat; of layers that carry traces.
      ratios: of decay.
      states: after the chunk, as `_Chunk` has them.
      inputs: x, reset and mask.
      cotangents: the loss's gradient at the states, [B, T, m N].
    """

    gradients: dict
    ratios: dict
    states: list
    inputs: dict
    cotangents: dict


class _Chunk(NamedTuple):
    """A batch as fit gets it, and before it the states of each layer, a tuple; () if it had no carry yet."""

    values: tuple
    states: list


def _states(carries):
    """States of each layer of a stack; () if there is no carry yet."""
    return tuple(carry.state for carry in carries or ())


def _without_history(carries, states):
    """The carries with these states, () being zeros, and with zero traces."""
    zeros = tf.nest.map_structure(tf.zeros_like, carries)
    return [zero._replace(state=state) for zero, state in zip(zeros, states, strict=True)] if states else zeros


def _live(states):
    """Which streams are not all zero in `states`, [B] bool."""
    return tf.reduce_any([tf.reduce_any(value != 0, (1, 2)) for value in states], axis=0)


def _kept(carries, states):
    """The carries with zeros for streams that are all zero in `states`."""
    live = _live(states)

    def kept(value):
        return tf.where(tf.reshape(live, (-1, *(1,) * (value.shape.rank - 1))), value, tf.zeros_like(value))

    return tf.nest.map_structure(kept, carries)


def _recurrent(layer, carries):
    """Name, layer and `Carry` of each recurrent layer in a stateful layer, which is one itself or a stack."""
    children = layer._recurrent_layers()
    return [
        (layer.name if child is layer else f"{layer.name}/{i}", child, own)
        for i, (child, own) in enumerate(zip(children, carries, strict=True), 1)
    ]


def _inputs(x, reset, mask):
    """Inputs of a recurrence as tensors [B, T, ...]."""
    flags = tf.zeros(tf.shape(x)[:2], tf.bool)
    return x, flags if reset is None else reset, ~flags if mask is None else mask


def _reset_by_hand(inputs, states):
    """The inputs of a chunk, with a reset at its first step for streams that are all zero in the `states` before it."""
    x, reset, mask = inputs
    first = reset[:, :1] | ~_live(states)[:, tf.newaxis] if states else tf.ones_like(reset[:, :1])
    return x, tf.concat([first, reset[:, 1:]], 1), mask


def _weights(layer):
    return {name: weight if LEGACY else weight.value for name, weight in layer.recurrent_weights().items()}


def _meter(layer):
    """A `GradientWorth` of a recurrent layer's states."""

    def unroll(inputs, carry):
        x, reset, mask = inputs
        states, carry = layer.recur(x, carry, reset, mask, carry.has_traces, gradient="rtrl")
        return tf.concat(states, -1), carry

    return GradientWorth(unroll, _weights(layer))


def _decay(layer, x, carry, reset, mask, states):
    """Decay ratios of a recurrent layer's chunk."""
    rho = {key: tf.cast(weight, layer.trace_dtype) for key, weight in layer.recurrent_weights().items()}
    kernel, inputs = rho.pop("kernel"), tf.cast(x, layer.trace_dtype)
    return figures.decay(
        figures.jacobians(layer.cell, kernel=kernel, rho=rho, x=inputs, start=carry.state, states=states, reset=reset),
        mask,
    )


def _penalties(layer):
    roles = {"kernel": "kernel", **{p.name: p.role for p in layer.cell.unit_parameters()}}
    for name, weight in layer.recurrent_weights().items():
        regularizer = getattr(layer, f"{roles[name]}_regularizer")
        if regularizer is not None:
            yield regularizer(weight)


@contextlib.contextmanager
def _unchanged(model):
    """What else a model writes when it runs is put back: metrics, the states of other layers."""
    variables = [*model.non_trainable_variables, *(v for metric in model.metrics for v in metric.variables)]
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False) and not isinstance(layer, Recurrent):  # Keras tracks no recurrent states
            variables += [state for state in tf.nest.flatten(getattr(layer, "states", None)) if state is not None]
    before = [tf.convert_to_tensor(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
