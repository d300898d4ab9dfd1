"""gymnasium's spaces as specs: numbers as they are, choices one-hot in observations and from 0 in actions."""

import math

import numpy as np
from gymnasium import spaces
from tf_agents.specs import array_spec

from keras_rtrl._checks import fits_memory, shown

_TAKEN = {
    "observation": "a Box of numbers with a size, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of these",
    "action": "a Box of numbers with a size, Discrete or MultiDiscrete",
}


def observation_spec(space):
    """The spec of a gymnasium observation space.

    A Box keeps its shape and dtype, save float64, which becomes float32. All else is one float32 vector (`encoded`).

    Raises:
      ValueError: a space that is not taken, the message names it and those that are; or one that no memory holds.
    """
    _check(space, "observation")
    if isinstance(space, spaces.Box):
        return _box_spec(space, "observation")
    fits_memory(f"the observation space {shown(space)}", 12 * _width(space))  # an observation, and its two bounds
    least = np.concatenate(_bounds(space, "low"))
    return array_spec.BoundedArraySpec(
        least.shape, np.float32, least, np.concatenate(_bounds(space, "high")), name="observation"
    )


def action_spec(space):
    """The spec of a gymnasium action space: choices are int64 from 0, a Box keeps its dtype save float64.

    Raises:
      ValueError: a space that is not taken; the message names it and those that are.
    """
    _check(space, "action")
    if isinstance(space, spaces.Box):
        return _box_spec(space, "action")
    counts = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec, np.int64)
    return array_spec.BoundedArraySpec(counts.shape, np.int64, np.zeros_like(counts), counts - 1, name="action")


def encoded(space, values):
    """A batch of the space's values, as a vector environment gives them, as its observation spec says.

    What is no Box becomes one float32 vector [B, width]: each choice of a Discrete or MultiDiscrete one-hot, counted
    from the space's start; MultiBinary as it is; a Box inside a Tuple or Dict row by row. The parts of a Tuple or Dict
    stand side by side in its order.

    Raises:
      ValueError: a choice that is not in the space.
    """
    if isinstance(space, spaces.Box):
        return np.array(values, _dtype(space))  # a copy: the simulator may write to its own again
    return np.concatenate(list(_encoded(space, values)), axis=1)


def _check(space, name):
    refused = next((part for part in _parts(space, name) if not _is_taken(part, name)), None)
    if refused is None:
        return
    inside = "" if refused is space else f", which holds {shown(refused)}"
    raise ValueError(f"the {name} space must be {_TAKEN[name]}; got {shown(space)}{inside}")


def _parts(space, name):
    """The space, or what a Tuple or Dict is made of; an empty one holds nothing that can be seen."""
    if name == "observation" and isinstance(space, (spaces.Tuple, spaces.Dict)) and len(space.spaces):
        for part in _held(space):
            yield from _parts(part, name)
    else:
        yield space


def _held(space):
    return space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces


def _is_taken(space, name):
    if isinstance(space, spaces.Box):
        return np.dtype(space.dtype).kind in "iuf" and math.prod(space.shape) > 0
    if isinstance(space, spaces.MultiBinary):
        return name == "observation" and math.prod(space.shape) > 0
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.size > 0
    return isinstance(space, spaces.Discrete)


def _dtype(space):
    return np.dtype(np.float32 if space.dtype == np.float64 else space.dtype)


def _box_spec(space, name):
    dtype = _dtype(space)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    low, high = (np.clip(bound, limits.min, limits.max).astype(dtype) for bound in (space.low, space.high))
    return array_spec.BoundedArraySpec(space.shape, dtype, low, high, name=name)


def _bounds(space, bound):
    """The least ("low") or largest ("high") values of `encoded`, as a list of float32 vectors."""
    if isinstance(space, (spaces.Tuple, spaces.Dict)):
        return [part for held in _held(space) for part in _bounds(held, bound)]
    if isinstance(space, spaces.Box):
        limits = np.finfo(np.float32)
        return [np.clip(getattr(space, bound), limits.min, limits.max).astype(np.float32).ravel()]
    return [np.full(_width(space), bound == "high", np.float32)]


def _width(space):
    """The number of columns of `encoded`."""
    if isinstance(space, (spaces.Tuple, spaces.Dict)):
        return sum(_width(part) for part in _held(space))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum()) if isinstance(space, spaces.MultiDiscrete) else math.prod(space.shape)


def _encoded(space, values):
    """The parts of `encoded`, float32 [B, width] each."""
    if isinstance(space, (spaces.Tuple, spaces.Dict)):
        values = [values[key] for key in space.spaces] if isinstance(space, spaces.Dict) else values
        for part, value in zip(_held(space), values, strict=True):
            yield from _encoded(part, value)
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        values = np.asarray(values)
        counts = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        chosen = values.reshape(len(values), -1) - np.ravel(space.start)
        if ((chosen < 0) | (chosen >= counts)).any():
            raise ValueError(f"the environment's observation must lie in {shown(space)}, got {values.tolist()}")
        one_hot = np.zeros((len(values), int(counts.sum())), np.float32)
        np.put_along_axis(one_hot, chosen + np.cumsum(counts) - counts, 1.0, axis=1)
        yield one_hot
    else:
        values = np.asarray(values, np.float32)
        yield values.reshape(len(values), -1)
