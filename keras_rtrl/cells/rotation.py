"""What RTU and LRU share: two components of state, turned by theta = exp(vartheta), shrunk by r = exp(-exp(nu))."""

import math

import tensorflow as tf

from keras_rtrl._checks import number

EDGE = 1e-6  # keeps the draws of u off 0 and 1: there the logarithms are infinite
# Past these bounds r is 0, and theta only grows until it overflows: there the derivatives are 0.
_BOUNDS = {"nu": 5.0, "vartheta": 8.0}


def checked_ring(r_min, r_max, min_phase, max_phase):
    """The four as floats. Raises ValueError unless 0 <= r_min < r_max <= 1 and 0 <= min_phase < max_phase."""
    r_min, r_max = number("r_min", r_min), number("r_max", r_max)
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(f"r_min and r_max must satisfy 0 <= r_min < r_max <= 1, got {r_min!r} and {r_max!r}.")
    min_phase, max_phase = number("min_phase", min_phase, low=0), number("max_phase", max_phase, above=0)
    if min_phase >= max_phase:
        raise ValueError(f"min_phase must be below max_phase, {max_phase!r}, got {min_phase!r}.")
    return r_min, r_max, min_phase, max_phase


def rate_on_ring(u, r_min, r_max):
    """-log r of radii r on the ring between r_min and r_max, of uniform draws u in (0, 1)."""
    return -0.5 * tf.math.log(u * (r_max**2 - r_min**2) + r_min**2)


def phase_initializer(min_phase, max_phase):
    """Initialiser of vartheta: theta is log-uniform between the two, or uniform on (0, max_phase) if min_phase is 0."""

    def vartheta(shape, dtype=None):
        dtype = tf.as_dtype(dtype or tf.float32)
        if min_phase > 0:
            return tf.random.uniform(shape, math.log(min_phase), math.log(max_phase), dtype)
        return tf.math.log(max_phase * tf.random.uniform(shape, EDGE, 1, dtype))

    return vartheta


def coefficients(rho):
    """What the step reads of nu and vartheta.

    "rate" is -log r, "g" is r cos theta, "p" is r sin theta, and "d_theta" is d theta / d vartheta.
    """
    rate, theta = (tf.exp(tf.minimum(rho[name], bound)) for name, bound in _BOUNDS.items())
    r = tf.exp(-rate)
    d_theta = tf.where(rho["vartheta"] > _BOUNDS["vartheta"], tf.zeros_like(theta), theta)
    return {"rate": rate, "r": r, "g": r * tf.cos(theta), "p": r * tf.sin(theta), "d_theta": d_theta}


def turned(state, c):
    """The state (a, b), turned and shrunk."""
    a, b = state
    return (c["g"] * a - c["p"] * b, c["g"] * b + c["p"] * a)


def jacobian(c):
    """d turned / d state."""
    return ((c["g"], -c["p"]), (c["p"], c["g"]))


def phase_derivative(turned, c):
    """d turned / d vartheta."""
    return (-c["d_theta"] * turned[1], c["d_theta"] * turned[0])
