"""Checks of arguments that must be tensors."""

import tensorflow as tf

from keras_rtrl._checks import shown


def floats(name, value, dtype=None):
    """`value`, a tensor or an array, as a tensor; raises TypeError unless it is of floats, of `dtype` if given."""
    expected = "floats" if dtype is None else dtype.name
    tensor = _tensor(name, value, expected)
    if tensor.dtype != dtype if dtype is not None else not tensor.dtype.is_floating:
        raise TypeError(f"{name} must be a tensor of {expected}, got {tensor.dtype.name}")
    return tensor


def bools(name, value):
    """`value`, a tensor or an array, as a tensor; raises TypeError unless it is of bool."""
    tensor = _tensor(name, value, "bool")
    if tensor.dtype != tf.bool:
        raise TypeError(f"{name} must be a tensor of bool, got {tensor.dtype.name}")
    return tensor


def frames(**given):
    """Arguments with one value for each frame, as a list of tensors: all of one float dtype, but the last of bool.

    Raises:
      TypeError: no tensors, or other dtypes.
      ValueError: more than one shape.
    """
    *values, boundary = given
    made = {}
    for name in values:
        made[name] = floats(name, given[name], made[values[0]].dtype if made else None)
    made[boundary] = bools(boundary, given[boundary])
    shapes = {name: tensor.shape for name, tensor in made.items()}
    if not all(shape.is_compatible_with(shapes[values[0]]) for shape in shapes.values()):
        raise ValueError(f"expected one shape for all of {list(shapes)}, got {shapes}")
    return list(made.values())


def rollouts(bootstrap_value, **given):
    """As `frames`, [B, T] each, and at the end `bootstrap_value` [B]."""
    made = frames(**given)
    for name, tensor in zip(given, made, strict=True):
        if not tensor.shape.is_compatible_with([None, None]):
            raise ValueError(f"{name} must be [B, T], got {tensor.shape}")
    bootstrap_value = floats("bootstrap_value", bootstrap_value, made[0].dtype)
    if not bootstrap_value.shape.is_compatible_with(made[0].shape[:1]):
        raise ValueError(f"bootstrap_value must be [B] with B of {made[0].shape}, got {bootstrap_value.shape}")
    return [*made, bootstrap_value]


def _tensor(name, value, expected):
    try:
        return tf.convert_to_tensor(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name} must be a tensor of {expected}, got {shown(value)}") from error
