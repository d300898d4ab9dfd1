"""Checks of arguments that several parts share."""

import math
import numbers

import numpy as np


def number(name, value, low=None, above=None):
    """Returns `value` as a float; raises ValueError unless it is finite and at least `low`, or above `above`."""
    bound = f" of at least {low}" if low is not None else f" above {above}" if above is not None else ""
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (low is not None and value < low) or (above is not None and value <= above):
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
    return float(value)


def flag(name, value):
    """Returns `value` as a bool; raises ValueError unless it is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def whole_number(name, value, low=1, high=None):
    """Returns `value` as an int; raises ValueError unless it is a whole number from `low` to `high`."""
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value != int(value) or value < low or (high is not None and value > high):
        bound = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name} must be a whole number of at least {low}{bound}, got {value!r}")
    return int(value)
