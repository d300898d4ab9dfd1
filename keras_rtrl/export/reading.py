"""A Keras model as a function of tensors by name, whose RTRL layers take their carries from outside."""

import contextlib
import inspect
import itertools
import re
from collections.abc import Iterable

import tensorflow as tf

from keras_rtrl._checks import fits_memory, whole_number
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.engine import Carry
from keras_rtrl.export.module import concrete
from keras_rtrl.layers.carry import Chosen, chosen_by
from keras_rtrl.layers.recurrent import Recurrent


class NamedModel:
    """A model as a function of its inputs, of the states or carries of its RTRL layers, and of a reset.

    Attributes:
      layers: all layers of the model.
      batch_size: B of all specs; None: free.
      inputs: TensorSpecs [B, ...] of the model's inputs by name.
      reset: {"reset": TensorSpec [B, T] bool}; empty if no layer needs it.
      states: TensorSpecs [B, ...] by name of the states that RTRL layers go on with; with `traces`, of whole carries.
      outputs: TensorSpecs [B, ...] of the model's outputs by name.
    """

    def __init__(
        self, model: keras.Model, *, batch_size: int | None = None, steps: int | None = None, traces: bool = False
    ):
        """Arguments and errors of `inference_model`; `traces`: whole carries go in and out, as in training."""
        self.batch_size = batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
        steps = None if steps is None else whole_number("steps", steps)
        self._model, self._traces = model, traces
        self.layers = _checked(model)
        self.inputs, self._run = _signature(model, batch_size)
        found = self._first_pass()
        # If the model has another number of steps, change it if the layers allow that. If the number is unknown,
        # TimeDistributed takes the number of streams for it (Keras 3.15).
        distributed = any(isinstance(layer, keras.layers.TimeDistributed) for layer in self.layers)
        if found.steps != {steps} and not (distributed and steps is None):
            before = self.inputs
            self.inputs = {name: _with_steps(spec, found.steps, steps) for name, spec in before.items()}
            trial = None
            with contextlib.suppress(TypeError, ValueError, tf.errors.InvalidArgumentError):
                trial = self._first_pass()
            if trial is not None and trial.steps == {steps}:
                found = trial
            else:
                self.inputs = before
        if steps is not None and found.steps != {steps}:
            raise ValueError(f"steps must be None: {model.name} cannot be called with {steps} of them.")
        own_reset = found.open_resets and "reset" not in self.inputs
        self.reset = {"reset": tf.TensorSpec([batch_size, steps], tf.bool)} if own_reset else {}
        self.states, self.outputs = found.specs, found.named
        size = sum(spec.shape[1:].num_elements() * spec.dtype.size for spec in self.states.values())
        fits_memory(f"batch_size: a carry of {batch_size or 1} streams", (batch_size or 1) * size)

    def _first_pass(self):
        found = _Pass(self.layers, self.inputs, traces=self._traces)
        function = concrete(lambda **given: found.outputs(self._model, self._run, given, False), self.inputs)
        found.named = {name: tf.TensorSpec(o.shape, o.dtype) for name, o in function.structured_outputs.items()}
        return found

    def __call__(self, given: dict[str, tf.Tensor], training: bool = False) -> tuple[dict, dict, int | tf.Tensor]:
        """Outputs by name, the new states or carries by name, and the number of steps of the RTRL layers.

        Args:
          given: tensors of `inputs`, `states` and `reset` by name.
          training: what the model's layers are told.
        """
        now = _Pass(self.layers, self.inputs, given, given.get("reset") if self.reset else None, traces=self._traces)
        return now.outputs(self._model, self._run, given, training), now.states, now.length


def _checked(model):
    """All layers of a model that can be served."""
    if not isinstance(model, keras.Model):
        line = "tf-keras" if LEGACY else "Keras 3"
        raise TypeError(
            f"model must be a model of {line}, got {type(model).__module__}.{type(model).__name__}; a layer alone goes "
            "into keras.Sequential([keras.Input(...), layer])."
        )
    if not model.built:
        raise ValueError(f"model must be built, {model.name} is not: give it a keras.Input, or call it once.")
    layers = list(model._flatten_layers())
    if not any(isinstance(layer, Recurrent) for layer in layers):
        raise ValueError(f"model must have an RTRL layer, {model.name} has none: model.export(path) serves it.")
    for layer in layers:
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(f"model: {layer.name} is a stateful layer of Keras' own: its state cannot be brought out.")
    for layer in _distributed(layers):
        if layer.stateful:
            raise ValueError(f"model: {layer.name} is stateful inside TimeDistributed: its state has no stream.")
    return layers


def _distributed(layers):
    """RTRL layers inside TimeDistributed: the steps outside are rows of their batch, and they start each from zero."""
    return [
        inner
        for layer in layers
        if isinstance(layer, keras.layers.TimeDistributed)
        for inner in layer._flatten_layers()
        if isinstance(inner, Recurrent)
    ]


# The model's inputs and outputs by name.


def _signature(model, batch_size):
    """TensorSpecs of the model's inputs by name, and a function that runs it on a dict of tensors."""
    args, kwargs = _arguments(model)
    arguments = inspect.signature(model.call).parameters
    named = [pair for name, value in zip(arguments, args, strict=False) for pair in _by_name(value, name)]
    named += [pair for name, value in kwargs.items() for pair in _by_name(value, name)]
    specs = {}
    for name, leaf in named:
        specs[unique(name, specs)] = tf.TensorSpec([batch_size, *tuple(leaf.shape)[1:]], leaf.dtype)

    def run(tensors, training):
        again = tf.nest.pack_sequence_as((args, kwargs), [tensors[name] for name in specs])
        return model(*again[0], **again[1], training=training)

    return specs, run


def _arguments(model):
    """Positional and named arguments of a model's call, as structures of what has a shape and a dtype."""
    if getattr(model, "inputs", None):  # Sequential or functional
        return (model.inputs[0] if isinstance(model, keras.Sequential) else model.input,), {}
    if LEGACY:
        args, kwargs = model.save_spec()
        return tuple(args), kwargs
    config = model.get_build_config() or {}
    dtype = model.input_dtype
    if "input_shape" in config:
        return (_specs(config["input_shape"], dtype),), {}
    shapes = config["shapes_dict"]
    return (), {name.removesuffix("_shape"): _specs(shape, dtype) for name, shape in shapes.items()}


def _specs(shapes, dtype):
    """TensorSpecs in the structure of `shapes`."""
    if isinstance(shapes, dict):
        return {key: _specs(value, dtype) for key, value in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return tf.TensorSpec(shapes, dtype)
    return [_specs(value, dtype) for value in shapes]


def _by_name(structure, name):
    """Leaves of a structure with the names that its dicts give them, else that of their keras.Input, else `name`."""
    if isinstance(structure, dict):
        return [(str(key), leaf) for key in sorted(structure) for _, leaf in _by_name(structure[key], name)]
    if isinstance(structure, (list, tuple)):
        return [pair for value in structure for pair in _by_name(value, name)]
    if structure is None:
        return []
    history = getattr(structure, "_keras_history", None)
    return [(history[0].name if history else name, structure)]


def unique(name: str, taken: Iterable[str]) -> str:
    """`name` as an identifier, with a number if it is taken."""
    name = re.sub(r"\W", "_", name)
    numbered = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(candidate for candidate in numbered if candidate not in taken)


def _with_steps(spec, found, steps):
    """A TensorSpec whose second size is `steps` if it was one of those `found`."""
    shape = spec.shape.as_list()
    if len(shape) > 1 and shape[1] in found:
        shape[1] = steps
    return tf.TensorSpec(shape, spec.dtype)


class _Pass:
    """One pass through a model in which its RTRL layers take their states from outside, and make no traces.

    With `traces` they take and make whole carries, as in training; *states* below are then the tensors of these.

    Attributes:
      specs: TensorSpecs of the states, by name.
      states: the new ones, by name.
      steps: the numbers of steps that layers were called with, None if free.
      length: the number of steps of the last such call, also if it is free.
      open_resets: whether a layer gets no reset from the model.
    """

    def __init__(self, layers, inputs, given=None, reset=None, *, traces=False):
        """Takes states from `given` by name, zeros if that is None, and [B, T] `reset` if it is given."""
        self.specs, self.states, self.steps, self.length, self.open_resets = {}, {}, set(), 0, False
        distributed = _distributed(layers)
        self._layers = [layer for layer in layers if isinstance(layer, Recurrent) and layer not in distributed]
        functional = [layer for layer in layers if LEGACY and getattr(layer, "_is_graph_network", False)]
        self._models = [model for model in functional if not hasattr(model, "_manual_input_spec")]
        self._given, self._reset, self._with_traces = given, reset, traces
        self._taken = {*inputs, "reset"}
        self._kept = {}  # names of the states of stateful layers, which go on with them in their next call
        self._states_named = {}  # new states, of layers that the model gave theirs too
        self._stand_ins = []  # (tensor in place of traces, layer that returned it)

    def outputs(self, model, run, tensors, training):
        """The model's outputs by name, without states and traces of its layers."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(chosen_by(self._choose))
            for inner in self._models:  # tf-keras insists on the number of steps of a functional model's keras.Input
                inner.input_spec = None
                stack.callback(delattr, inner, "_manual_input_spec")  # the setter's; without it the inputs decide again
            result = run(tensors, training)
        for stand_in, layer in self._stand_ins:
            if stand_in.consumers():
                raise ValueError(f"model computes with traces that {layer.name} returns: in inference there are none.")
        named = _by_name(result, "output")
        if len(named) > 1 and not isinstance(result, dict):
            named = [(f"{name}_{i}", leaf) for i, (name, leaf) in enumerate(named)]
        own = getattr(model, "outputs", None) or ()
        if len(own) == len(named) and not isinstance(result, dict):
            named = [(ours._keras_history[0].name, leaf) for ours, (_, leaf) in zip(own, named, strict=True)]
        dropped = {tensor.ref() for tensor in (*self.states.values(), *(stand_in for stand_in, _ in self._stand_ins))}
        outputs = {}
        for name, leaf in named:
            if leaf.ref() not in dropped:
                name = self._states_named.get(leaf.ref(), name)
                outputs[unique(name, {*self.states, *outputs})] = leaf
        return outputs

    def _choose(self, layer, x, initial_state, reset):
        """States of a layer's call, from outside or as the model gives them."""
        if layer not in self._layers:
            return None
        self.steps.add(x.shape[1])
        self.length = tf.shape(x)[1]
        if initial_state is None:
            return self._chosen_outside(layer, x, reset)
        return None if self._with_traces else self._chosen_by_model(layer, x, initial_state, reset)

    def _chosen_outside(self, layer, x, reset):
        entries = layer._entries(None if self._with_traces else False)
        names = self._names(layer, entries, x.shape[0])
        rows = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
        values = {
            entry.name: layer._check_rows(entry, self._state(name, entry, rows), x)
            for name, entry in zip(names, entries, strict=True)
        }
        if reset is None:
            self.open_resets = True
            reset = layer._check_flags("reset", self._reset, x)

        def keep(carries):
            self.states.update(zip(names, tf.nest.flatten(carries), strict=True))
            return carries if self._with_traces else self._without_traces(layer, carries, layer.return_state)

        return Chosen(layer._by_layer(values), keep, reset=reset)

    def _chosen_by_model(self, layer, x, initial_state, reset):
        states = tf.nest.flatten(initial_state)
        whole = len(states) > len(layer._entries(False))
        carries = layer.given_carries(x, self._states_of(layer, states) if whole else states)

        def keep(carries):
            return self._without_traces(layer, carries, whole and layer.return_state)

        return Chosen(carries, keep, reset=reset)

    def _names(self, layer, entries, batch):
        """Names of the states that a layer goes on with in this call."""
        if layer in self._kept:
            return self._kept[layer]
        names = []
        for name, entry in zip(_state_names(layer, entries), entries, strict=True):
            names.append(unique(name, self._taken))
            self._taken.add(names[-1])
            self.specs[names[-1]] = tf.TensorSpec((batch, *entry.shape), entry.dtype)
        if layer.stateful:
            self._kept[layer] = names
        return names

    def _state(self, name, entry, rows):
        if name in self.states:
            return self.states[name]
        return tf.zeros((rows, *entry.shape), entry.dtype) if self._given is None else self._given[name]

    # In inference, layers that return their carry, or take one that another layer returned, get empty tensors in place
    # of traces.

    def _without_traces(self, layer, carries, stand_in):
        """Notes the names of a layer's new states; the carries, with stand-ins for traces if a layer returns these."""
        names = _state_names(layer, layer._entries(False))
        self._states_named.update({carry.state.ref(): name for name, carry in zip(names, carries, strict=True)})
        return [Carry(carry.state, *self._traces(layer)) for carry in carries] if stand_in else carries

    def _traces(self, layer):
        stand_ins = [tf.zeros([0]), tf.zeros([0])]
        self._stand_ins += [(stand_in, layer) for stand_in in stand_ins]
        return stand_ins

    def _states_of(self, layer, carry):
        known = {stand_in.ref() for stand_in, _ in self._stand_ins}
        if any(part.ref() not in known for i, part in enumerate(carry) if i % 3):
            raise ValueError(f"model gives {layer.name} traces as initial_state: give it the state alone.")
        return carry[::3]


def _state_names(layer, entries):
    """The layer's name and the entry's; without the number of a stack's only RTRL layer."""
    single = len(layer._recurrent_layers()) == 1
    return [f"{layer.name}_{entry.name.removesuffix('_1') if single else entry.name}" for entry in entries]
