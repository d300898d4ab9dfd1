"""Functions of named tensors in a tf.Module that neither needs Keras nor keras_rtrl."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from keras_rtrl._checks import shown
from keras_rtrl._keras import keras
from keras_rtrl.layers import RTRL
from keras_rtrl.layers.recurrent import of_size


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
            self.step = concrete(checked, {**inputs, **states})
        # The variables and not the Keras objects, which a process without this package could not load.
        self._weights = list(self.step.variables)

        def initial_state(batch_size=batch_size):
            return {name: tf.zeros((batch_size, *spec.shape[1:]), spec.dtype) for name, spec in states.items()}

        free = {"batch_size": tf.TensorSpec([], tf.int32)} if batch_size is None else {}
        self.initial_state = concrete(initial_state, free)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a SavedModel, a folder, with the signatures "serving_default" (`step`) and "initial_state".

        Raises:
          TypeError: `path` is no path.
          ValueError: `path` ends as one of Keras' files does, or is a file.
          OSError: it cannot be written.
        """
        save(self, path, {"serving_default": self.step, "initial_state": self.initial_state})


def concrete(function: Callable, specs: dict[str, tf.TensorSpec]) -> Callable:
    """The concrete function of arguments by name."""
    return tf.function(function, autograph=False).get_concrete_function(**specs)


def save(module: tf.Module, path: str | os.PathLike, signatures: dict[str, Callable]) -> None:
    """Writes a SavedModel with these signatures; raises as `StatefulModule.save` does."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name:
        raise TypeError(f"path must be a path, got {shown(path)}.")
    if name.endswith((".keras", ".h5", ".hdf5")):
        raise ValueError(f"path must be that of a folder, which a SavedModel is and no Keras file, got {shown(path)}.")
    try:
        if tf.io.gfile.exists(name) and not tf.io.gfile.isdir(name):
            raise ValueError(f"path must be that of a folder, and {shown(path)} is a file.")
        tf.saved_model.save(module, name, signatures=signatures)
    except (OSError, tf.errors.OpError) as error:
        raise OSError(f"path cannot be written, {shown(path)}: {error}") from error
