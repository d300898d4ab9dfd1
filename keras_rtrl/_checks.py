"""Checks of arguments that several parts share."""

import contextlib
import difflib
import functools
import inspect
import math
import numbers
import os
import reprlib

import numpy as np


class _Shown(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20
        self.maxstring = self.maxother = 120
        self.maxlong = 40

    def repr1(self, x, level):
        return super().repr1(x.item() if isinstance(x, np.generic) else x, level)  # NumPy 2 says np.int32(-1)

    def repr_int(self, x, level):
        if x.bit_length() > 10_000:  # Python refuses to print longer ones
            return f"an integer of {x.bit_length()} bits"
        return super().repr_int(x, level)

    def repr_ndarray(self, x, level):
        return f"an array of shape {x.shape} and dtype {x.dtype}" if x.size > 20 else self.repr_instance(x, level)


_shown = _Shown()


def shown(value):
    """repr(value) in one line for a message, shortened in the middle if it is long."""
    return " ".join(_shown.repr(value).split())


def _is_finite(value):
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def number(name, value, low=None, above=None, high=None):
    """Returns `value` as a float; raises ValueError unless it is finite, at least `low` or above `above`, and at most
    `high`."""
    bound = f" of at least {low}" if low is not None else f" above {above}" if above is not None else ""
    bound += "" if high is None else f" {'and' if bound else 'of'} at most {high}"
    fits = _is_finite(value) and (low is None or value >= low) and (above is None or value > above)
    if not fits or (high is not None and value > high):
        raise ValueError(f"{name} must be a finite number{bound}, got {shown(value)}")
    return float(value)


def flag(name, value):
    """Returns `value` as a bool; raises ValueError unless it is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def whole_number(name, value, low=1, high=None):
    """Returns `value` as an int; raises ValueError unless it is a whole number from `low` to `high` (2**63 - 1)."""
    largest = 2**63 - 1 if high is None else high
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    fits = fits or (_is_finite(value) and value == int(value))
    if not fits or value < low or value > largest:
        bound = "" if high is None else f" and at most {high}"
        if high is None and fits and value > largest:
            bound = " and below 2**63"
        raise ValueError(f"{name} must be a whole number of at least {low}{bound}, got {shown(value)}")
    return int(value)


def one_of(name, value, options):
    """Returns `value`; raises ValueError unless it is one of `options`: strings, and None if they contain it."""
    if not (value is None or isinstance(value, str)) or value not in options:
        raise ValueError(f"{name} must be one of {options}, got {shown(value)}.")
    return value


def widths(name, value):
    """Returns `value` as a tuple of the widths of dense layers in a row.

    Raises ValueError unless it is a list or tuple of whole numbers of at least 1, with memory for the layers' weights.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list or tuple of whole numbers of at least 1, got {shown(value)}")
    value = tuple(whole_number(name, width) for width in value)
    pairs = zip((1, *value), value, strict=False)
    fits_memory(f"{name}={shown(value)}", 4 * sum(before * after for before, after in pairs))
    return value


def closest(name, names):
    """The end of a message that suggests the one of `names` that is most like `name`; empty if none is like it."""
    alike = difflib.get_close_matches(name[:200] if isinstance(name, str) else shown(name), list(names), 1)
    return f" (did you mean {alike[0]!r}?)" if alike else ""


@functools.cache
def machine_memory():
    """Bytes of memory that this process may have: the machine's, or its control group's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:  # "max": no limit
            limits.append(int(file.read()))
    return min(limits)


def fits_memory(setting, needed):
    """Raises ValueError if `setting` would take `needed` bytes and the machine has less memory.

    Args:
      setting: the argument and its value, as the message begins: "units=1000000".
      needed: bytes, an estimate from below.
    """
    memory = machine_memory()
    if needed > memory:
        gib = min(needed, 2**1000) / 2**30  # a float holds no more
        figure = f"{gib:,.1f}" if gib < 1e15 else f"{gib:.0e}"
        raise ValueError(
            f"{setting} would take at least {figure} GiB of memory; this machine has {memory / 2**30:,.1f} GiB"
        )


def renamed(**names):
    """A decorator of a class whose arguments had other names before: `names` are the new ones, by the old ones.

    An old name raises a TypeError that says the new one. The class keeps the names as `renamed_arguments`.
    """

    def decorate(made):
        init = made.__init__

        @functools.wraps(init)
        def __init__(self, *args, **kwargs):
            for old in names.keys() & kwargs.keys():
                raise TypeError(f"{made.__name__} has no argument {old} any more: it is {names[old]}")
            init(self, *args, **kwargs)

        __init__.__signature__ = inspect.signature(init)  # gin follows no __wrapped__
        made.__init__ = __init__
        made.renamed_arguments = names
        return made

    return decorate
