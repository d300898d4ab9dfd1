"""What the checks of arguments make of values that Python itself stumbles over."""

import numpy as np
import pytest

from keras_rtrl import _checks


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), "0.9", "²", None, True, 1j, [1], np.zeros(2)])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^rate must be a finite number, got "):
        _checks.number("rate", value)


@pytest.mark.parametrize("value", [-(10**400), 0, 1.5, float("inf"), "3", "²", None, True, [1]])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^units must be a whole number of at least 1, got "):
        _checks.whole_number("units", value)


@pytest.mark.parametrize("value", [2**63, 10**400, 1e300])
def test_a_whole_number_that_int64_does_not_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"^units must be a whole number of at least 1 and below 2\*\*63, got "):
        _checks.whole_number("units", value)


def test_numbers_come_back_as_pythons_own():
    assert type(_checks.number("rate", np.float32(0.5), low=0, high=1)) is float
    assert type(_checks.whole_number("units", np.int64(3))) is int
    assert _checks.whole_number("seed", 2**32 - 1, 0, 2**32 - 1) == 2**32 - 1


@pytest.mark.parametrize("bounds", [{"low": 3}, {"above": 2}, {"high": 1}, {"low": 0, "high": 1}])
def test_a_number_out_of_its_range_is_refused(bounds):
    with pytest.raises(ValueError, match=r"^rate must be a finite number .*, got 2$"):
        _checks.number("rate", 2, **bounds)


LONG = {
    "text": "x" * 10**6,
    "number": 10**10**5,
    "list": list(range(10**6)),
    "array": np.zeros([500, 500]),
    "dict": {1: "y" * 999},
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_long_values_are_shortened(value):
    text = _checks.shown(value)
    assert len(text) < 200
    assert "\n" not in text


def test_the_closest_name_is_told():
    assert _checks.closest("forget_bais", ["units", "forget_bias"]) == " (did you mean 'forget_bias'?)"
    assert _checks.closest("x" * 5000, ["units"]) == ""


def test_more_memory_than_there_is_is_refused():
    _checks.fits_memory("units=1", 2**20)
    with pytest.raises(ValueError, match=r"^units=10 would take at least 953,674,316.4 GiB of memory; this machine"):
        _checks.fits_memory("units=10", 2**30 * 953_674_316.4)
    with pytest.raises(ValueError, match=r"^units=10 would take at least 1e\+292 GiB of memory"):
        _checks.fits_memory("units=10", 10**400)
