"""What a server may do with any learner: read and replace its state, freeze it, put its weights back."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from keras_rtrl.export.module import concrete, save
from keras_rtrl.export.reading import unique
from keras_rtrl.export.updates import path_of, value_of
from keras_rtrl.layers.recurrent import of_size


class Controlled(tf.Module):
    """A learner's variables by name, and the functions get, set, freeze, thaw, snapshot, rollback and info of them.

    A subclass traces its own functions, which read `_frozen` and add to `_counters`, then calls `_control`.

    Attributes:
      functions: names of the functions that the subclass adds; one that is None is not saved.
    """

    functions = ()

    def __init__(self, counters: Iterable[str], *, kept: Mapping[str, tf.Variable], carried: Mapping[str, tf.Variable]):
        """Makes counters, flag and snapshot.

        Args:
          counters: names of what is counted.
          kept: variables by name that `snapshot` keeps and `rollback` puts back.
          carried: variables by name that they leave alone; those of a free batch must have as many rows as the first.
        """
        super().__init__()
        self._counters = {name: tf.Variable(0, dtype=tf.int64, trainable=False, name=name) for name in counters}
        self._frozen = tf.Variable(False, trainable=False, name="frozen")
        self._kept, self._carried = dict(kept), dict(carried)
        self._snapshot = {name: tf.Variable(value, trainable=False, name=name) for name, value in self._kept.items()}

    def save(self, path: str | os.PathLike) -> None:
        """Writes a SavedModel, a folder, with the functions as signatures; all variables have their present values.

        Raises:
          TypeError: `path` is no path.
          ValueError: `path` ends as one of Keras' files does, or is a file.
          OSError: it cannot be written.
        """
        save(self, path, self.signatures())

    def signatures(self) -> dict[str, Callable]:
        """The functions by name, as a SavedModel has them."""
        names = (*self.functions, "get", "set", "freeze", "thaw", "snapshot", "rollback", "info")
        functions = {name: getattr(self, name) for name in names}
        return {name: function for name, function in functions.items() if function is not None}

    def _control(self, *functions: Callable) -> None:
        """Traces get, set and the others, for the state of the subclass' traced functions.

        Variables that they use besides, of Dropout's random numbers for example, become a part of the state.
        """
        known = [*self._kept.values(), *self._carried.values(), *self._counters.values(), *self._snapshot.values()]
        known = {variable.ref() for variable in (*known, self._frozen)}
        used = [variable for function in functions for variable in function.graph.variables]
        self._others = by_name("other", [variable for variable in used if variable.ref() not in known])
        state = {
            **self._kept,
            **self._carried,
            **self._others,
            **{f"count_{name}": variable for name, variable in self._counters.items()},
            "frozen": self._frozen,
            **{f"snapshot_{name}": variable for name, variable in self._snapshot.items()},
        }
        specs = {name: tf.TensorSpec(variable.shape, variable.dtype) for name, variable in state.items()}
        self.info = concrete(self._told, {})
        self.get = concrete(lambda: read(state), {})
        self.set = concrete(lambda **given: self._replaced(state, given), specs)
        self.freeze = concrete(lambda: self._changed({self._frozen.ref(): True}), {})
        self.thaw = concrete(lambda: self._changed({self._frozen.ref(): False}), {})
        kept, copies = self._kept, self._snapshot
        self.snapshot = concrete(lambda: self._changed({copies[name].ref(): kept[name] for name in kept}), {})
        self.rollback = concrete(lambda: self._changed({kept[name].ref(): copies[name] for name in kept}), {})

    def _told(self):
        return {**read(self._counters), "frozen": self._frozen.read_value()}

    def _changed(self, values):
        for variable, value in values.items():
            variable.deref().assign(value)
        return self._told()

    def _replaced(self, state, given):
        checked, first = {}, next(iter(self._carried))
        for name, value in given.items():
            value = tf.ensure_shape(value, state[name].shape, name=f"{name}_checked")
            if name in self._carried:
                value = of_size(value, given[first], 1, f"{name} must have as many rows as {first}")
            checked[name] = value
        finite = [must_be_finite(name, value) for name, value in checked.items() if value.dtype.is_floating]
        with tf.control_dependencies([*finite, *checked.values()]):
            return self._changed({state[name].ref(): tf.identity(value) for name, value in checked.items()})


def must_be_finite(name: str, value: tf.Tensor) -> tf.Operation:
    """What raises InvalidArgumentError if a floating tensor called `name` is not finite."""
    sound = tf.reduce_all(tf.math.is_finite(value))
    return tf.debugging.Assert(sound, [f"{name} must be finite, and is not everywhere."])


def read(variables: Mapping[str, tf.Variable]) -> dict[str, tf.Tensor]:
    """The values by name, as they are at this point of a graph."""
    return {name: variable.read_value() for name, variable in variables.items()}


def by_name(kind: str, variables: Iterable[Any]) -> dict[str, tf.Variable]:
    """TensorFlow's variables by names that are identifiers: `kind` and Keras' path."""
    found = {}
    for variable in variables:
        found[unique(f"{kind}_{path_of(variable)}", found)] = value_of(variable)
    return found
