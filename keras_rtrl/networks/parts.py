"""Parts of a network that a user gives: layers and cells by object, and "module:name" of what makes them."""

import importlib

from keras_rtrl._checks import shown
from keras_rtrl._errors import one_line
from keras_rtrl._keras import keras


def is_named(part):
    """Whether a part is given as "module:name"."""
    return isinstance(part, str) and ":" in part


def made_by_name(what, part, *args, **kwargs):
    """What the function or class that `part`, "module:name", names makes of the arguments.

    Args:
      what: the argument that `part` was given as, for messages; "core" or "encoder".
      part: str.

    Raises:
      ValueError: no such module, nothing callable of that name in it, or arguments that it does not take.
    """
    module, _, name = part.partition(":")
    try:
        made_by = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module raises
        raise ValueError(f"{what}: cannot import {shown(part)} ({type(error).__name__}: {one_line(error)})") from error
    if not callable(made_by):
        raise ValueError(f"{what} must name a class or a function, {shown(part)} is {shown(made_by)}")
    try:
        return made_by(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"{what}: {shown(part)} failed ({type(error).__name__}: {one_line(error)})") from error


def copy_of(what, layer, **changes):
    """A layer of the same configuration, but for `changes`, with weights of its own.

    Raises:
      ValueError: the layer was built, so that weights would be lost, or its configuration does not make it again.
    """
    if layer.built:
        raise ValueError(f"{what}: {layer.name} must not have been built: the network makes a copy, with new weights")
    kinds = [type(layer), *(type(part) for part in _inner(layer))]
    try:
        with keras.utils.custom_object_scope({kind.__name__: kind for kind in kinds}):
            return type(layer).from_config({**layer.get_config(), **changes})
    except Exception as error:
        raise ValueError(
            f"{what}: get_config() of {type(layer).__name__} does not make it again ({one_line(error)})"
        ) from error


def _inner(layer):
    """The layers of a layer, and their cells, which need not be registered with Keras."""
    for part in layer._flatten_layers():
        yield part
        if hasattr(part, "cell"):
            yield part.cell
