"""Inference without this package: a model as a SavedModel of stock TensorFlow operations that carries no traces.

```python
inference_model(model).save("served")              # in a process with keras_rtrl

served = tf.saved_model.load("served").signatures  # in any process with TensorFlow
state = served["initial_state"](batch_size=tf.constant(1))
out = served["serving_default"](x=x, reset=reset, **state)
```
"""

import contextlib
import inspect
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from keras_rtrl._checks import shown, whole_number
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.engine import Carry
from keras_rtrl.layers import RTRL
from keras_rtrl.layers.carry import Chosen, chosen_by
from keras_rtrl.layers.recurrent import Recurrent, of_size


@contextlib.contextmanager
def stock_ops(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Inside, the RTRL layers among `layers` run on plain TensorFlow: no file may need the native op to load."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if isinstance(layer, RTRL):
                stack.callback(setattr, layer, "implementation", layer.implementation)
                layer.implementation = "tf"
        yield


class StatefulModule(tf.Module):
    """A function of named tensors that takes and returns named states, of stock operations.

    Attributes:
      step: concrete function of `inputs` and `states`, by name. All must have as many rows as the first.
      initial_state: concrete function batch_size (int32 []) -> the states, zeros; without that argument if the batch
        size is fixed.
    """

    def __init__(
        self,
        step: Callable[..., dict[str, tf.Tensor]],
        inputs: dict[str, tf.TensorSpec],
        *,
        states: dict[str, tf.TensorSpec],
        layers: Iterable[keras.layers.Layer],
        batch_size: int | None = None,
    ):
        """Traces.

        Args:
          step: function of the inputs and states by name that returns a dict; the new states are in it by their names.
          inputs: TensorSpecs [B, ...] by name.
          states: TensorSpecs [B, ...] by name.
          layers: those that `step` runs through; the RTRL layers among them run on stock operations.
          batch_size: B of all specs; None: free.
        """
        super().__init__()
        first = next(iter(inputs))

        def checked(**given):
            return step(
                **{
                    name: of_size(value, given[first], 1, f"{name} must have as many rows as {first}")
                    for name, value in given.items()
                }
            )

        with stock_ops(layers):
            self.step = _concrete(checked, {**inputs, **states})
        # The variables and not the Keras objects, which a process without this package could not load.
        self._weights = list(self.step.variables)

        def initial_state(batch_size=batch_size):
            return {name: tf.zeros((batch_size, *spec.shape[1:]), spec.dtype) for name, spec in states.items()}

        free = {"batch_size": tf.TensorSpec([], tf.int32)} if batch_size is None else {}
        self.initial_state = _concrete(initial_state, free)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a SavedModel, a folder, with the signatures "serving_default" (`step`) and "initial_state".

        Raises:
          TypeError: `path` is no path.
          ValueError: `path` ends as one of Keras' files does, or is a file.
          OSError: it cannot be written.
        """
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
        if not isinstance(name, str) or not name:
            raise TypeError(f"path must be a path, got {shown(path)}.")
        if name.endswith((".keras", ".h5", ".hdf5")):
            raise ValueError(
                f"path must be that of a folder, which a SavedModel is and no Keras file, got {shown(path)}."
            )
        signatures = {"serving_default": self.step, "initial_state": self.initial_state}
        try:
            if tf.io.gfile.exists(name) and not tf.io.gfile.isdir(name):
                raise ValueError(f"path must be that of a folder, and {shown(path)} is a file.")
            tf.saved_model.save(self, name, signatures=signatures)
        except (OSError, tf.errors.OpError) as error:
            raise OSError(f"path cannot be written, {shown(path)}: {error}") from error


# Long by its docstring.
def inference_model(model: keras.Model, *, batch_size: int | None = None, steps: int | None = None) -> StatefulModule:
    """The function that `model` computes in inference, as a tf.Module that needs neither Keras nor keras_rtrl.

    It holds only stock TensorFlow operations and no traces. It keeps no state: states go in and come out by name. The
    batch size is free, also if the model was built with a fixed one. The number of steps is free, unless a layer needs
    it fixed. With `batch_size` and `steps` all shapes are static, and with steps=1 the graph has no loop: such a module
    converts to LiteRT. The module shares the model's weights: it follows further training, and `save` writes the
    present values.

    One call on a whole sequence and several calls on its pieces give the same outputs, if only RTRL layers look back in
    time. Other layers that do, such as Conv1D or keras' LSTM, start again with each call; so does the output that is
    repeated at masked steps.

    The functions `step` and `initial_state`, which `save(path)` writes as the signatures "serving_default" and
    "initial_state", take and return flat tensors by name:

      initial_state(batch_size int32 []) -> the states [B, N, m], zeros; it takes nothing if `batch_size` is given.
      step(inputs, reset bool [B, T], states) -> outputs, new states. Inputs and outputs have the names of keras.Input
        and of the output layers, or the keys of dicts; a subclassed model's input has the name of its argument in
        `call`, and its outputs are `output` or `output_0`, `output_1`, ... A layer called elstm has the state
        `elstm_state`; a stack has `stack_state_1`, `stack_state_2`, ...; layers called twice without stateful=True have
        a second `elstm_state_2`. `reset`, true if a new episode starts with that step, is an input unless the model
        gives every layer with such a state its own reset.

    If the model passes an initial_state to a layer, the layer uses it as before. Layers with return_state=True return
    their states as outputs under the names above, and no traces.

    Args:
      model: a built keras.Model with at least one RTRL or RTRLStack layer: Sequential, functional or subclassed.
      batch_size: B, also of a model built with another; None: free.
      steps: T, also of a model built with another; None: free.

    Returns:
      A `StatefulModule`.

    Raises:
      TypeError: `model` is not a model of the Keras in use.
      ValueError: `batch_size` or `steps` is no whole number of at least 1, or a layer needs another number of steps;
        the model is not built, has no RTRL layer, takes traces as input or computes with them, has a stateful layer
        inside TimeDistributed, or a stateful recurrent layer of Keras, whose state has no name.
    """
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
    steps = None if steps is None else whole_number("steps", steps)
    layers = _checked(model)
    inputs, run = _signature(model, batch_size)

    def first_pass(inputs):
        found = _Pass(layers, inputs)
        _concrete(lambda **given: found.outputs(model, run, given), inputs)
        return found

    found = first_pass(inputs)
    # If the model has another number of steps, change it if the layers allow that. If the number is unknown,
    # TimeDistributed takes the number of streams for it (Keras 3.15).
    distributed = any(isinstance(layer, keras.layers.TimeDistributed) for layer in layers)
    if found.steps != {steps} and not (distributed and steps is None):
        changed = {name: _with_steps(spec, found.steps, steps) for name, spec in inputs.items()}
        with contextlib.suppress(TypeError, ValueError, tf.errors.InvalidArgumentError):
            trial = first_pass(changed)
            if trial.steps == {steps}:
                found, inputs = trial, changed
    if steps is not None and found.steps != {steps}:
        raise ValueError(f"steps must be None: {model.name} cannot be called with {steps} of them.")
    reset = {"reset": tf.TensorSpec([batch_size, steps], tf.bool)}
    reset = reset if found.open_resets and "reset" not in inputs else {}

    def step(**given):
        now = _Pass(layers, inputs, given, given.get("reset") if reset else None)
        return {**now.outputs(model, run, given), **now.states}

    return StatefulModule(step, {**inputs, **reset}, states=found.specs, layers=layers, batch_size=batch_size)


def _concrete(function, specs):
    return tf.function(function, autograph=False).get_concrete_function(**specs)


def _checked(model):
    """All layers of a model that an inference model can be made of."""
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
        specs[_unique(name, specs)] = tf.TensorSpec([batch_size, *tuple(leaf.shape)[1:]], leaf.dtype)

    def run(tensors):
        again = tf.nest.pack_sequence_as((args, kwargs), [tensors[name] for name in specs])
        return model(*again[0], **again[1], training=False)

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


def _unique(name, taken):
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

    Attributes:
      specs: TensorSpecs of the states, by name.
      states: the new ones, by name.
      steps: the numbers of steps that layers were called with, None if free.
      open_resets: whether a layer gets no reset from the model.
    """

    def __init__(self, layers, inputs, given=None, reset=None):
        """Takes states from `given` by name, zeros if that is None, and [B, T] `reset` if it is given."""
        self.specs, self.states, self.steps, self.open_resets = {}, {}, set(), False
        distributed = _distributed(layers)
        self._layers = [layer for layer in layers if isinstance(layer, Recurrent) and layer not in distributed]
        functional = [layer for layer in layers if LEGACY and getattr(layer, "_is_graph_network", False)]
        self._models = [model for model in functional if not hasattr(model, "_manual_input_spec")]
        self._given, self._reset = given, reset
        self._taken = {*inputs, "reset"}
        self._kept = {}  # names of the states of stateful layers, which go on with them in their next call
        self._states_named = {}  # new states, of layers that the model gave theirs too
        self._stand_ins = []  # (tensor in place of traces, layer that returned it)

    def outputs(self, model, run, tensors):
        """The model's outputs by name, without states and traces of its layers."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(chosen_by(self._choose))
            for inner in self._models:  # tf-keras insists on the number of steps of a functional model's keras.Input
                inner.input_spec = None
                stack.callback(delattr, inner, "_manual_input_spec")  # the setter's; without it the inputs decide again
            result = run(tensors)
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
                outputs[_unique(name, {*self.states, *outputs})] = leaf
        return outputs

    def _choose(self, layer, x, initial_state, reset):
        """States of a layer's call, from outside or as the model gives them; never traces."""
        if layer not in self._layers:
            return None
        self.steps.add(x.shape[1])
        batch = x.shape[0]
        zeros = layer.get_initial_state(tf.shape(x)[0] if batch is None else batch)
        own = initial_state is None
        whole = own
        if own:
            names = self._names(layer, zeros)
            states = [self._state(name, zero) for name, zero in zip(names, zeros, strict=True)]
            if reset is None:
                self.open_resets = True
                reset = layer._check_flags("reset", self._reset, x)
        else:
            states = tf.nest.flatten(initial_state)
            whole = len(states) > len(zeros)
            states = self._without_traces(layer, states) if whole else states
        carries = layer.given_carries(x, states)

        def keep(carries):
            states = [carry.state for carry in carries]
            if own:
                self.states.update(zip(names, states, strict=True))
            for name, state in zip(_state_names(layer, zeros), states, strict=True):
                self._states_named[state.ref()] = name
            return [Carry(state, *self._traces(layer)) for state in states] if whole and layer.return_state else carries

        return Chosen(carries, keep, reset=reset)

    def _names(self, layer, zeros):
        """Names of the states that a layer goes on with in this call."""
        if layer in self._kept:
            return self._kept[layer]
        names = []
        for name, zero in zip(_state_names(layer, zeros), zeros, strict=True):
            names.append(_unique(name, self._taken))
            self._taken.add(names[-1])
            self.specs[names[-1]] = tf.TensorSpec(zero.shape, zero.dtype)
        if layer.stateful:
            self._kept[layer] = names
        return names

    def _state(self, name, zero):
        if name in self.states:
            return self.states[name]
        return zero if self._given is None else self._given[name]

    # Layers that return their carry, or take one that another layer returned, get empty tensors in place of traces.

    def _traces(self, layer):
        stand_ins = [tf.zeros([0]), tf.zeros([0])]
        self._stand_ins += [(stand_in, layer) for stand_in in stand_ins]
        return stand_ins

    def _without_traces(self, layer, carry):
        known = {stand_in.ref() for stand_in, _ in self._stand_ins}
        if any(part.ref() not in known for i, part in enumerate(carry) if i % 3):
            raise ValueError(f"model gives {layer.name} traces as initial_state: give it the state alone.")
        return carry[::3]


def _state_names(layer, zeros):
    name = f"{layer.name}_state"
    return [name] if len(zeros) == 1 else [f"{name}_{i}" for i in range(1, len(zeros) + 1)]
