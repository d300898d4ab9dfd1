"""The shapes of the speed benchmark, and what contestants of different frameworks have in common."""

from typing import NamedTuple

import numpy as np

OUTPUTS = 7  # of the head
LEARNING_RATE = 1e-4
# Of the streaming loop. Radii near 1 make the loss of a linear RTU so steep that at larger rates rounding errors grow
# until the contestants' losses have nothing in common.
STREAM_RATE = 1e-6
THREADS = 2


class Unavailable(Exception):
    """A contestant cannot be had here; the message says why."""


class Size(NamedTuple):
    """B streams, N units, D inputs, T steps of one chunk; T = 1: an update at every step."""

    batch: int
    units: int
    inputs: int
    steps: int


SIZES = {
    "dmlab": Size(32, 512, 257, 100),
    "atari": Size(32, 256, 257, 50),
    "rtu_ppo": Size(1, 192, 64, 128),
    "wide_rtu": Size(16, 1024, 64, 128),
    "stream": Size(1, 192, 64, 1),
}

# --quick: that every contestant runs; the times mean nothing.
QUICK_SIZES = {
    "dmlab": Size(3, 8, 5, 4),
    "atari": Size(2, 6, 5, 3),
    "rtu_ppo": Size(1, 8, 4, 5),
    "wide_rtu": Size(2, 10, 4, 5),
    "stream": Size(1, 8, 4, 1),
}


def linear_rtu(rng, inputs, units):
    """Initial parameters of a linear RTU as the layer draws them, one array a kernel."""
    u = rng.uniform(1e-6, 1 - 1e-6, (2, units))
    kernels = rng.normal(0, inputs**-0.5, (2, inputs, units))
    params = {
        "nu": np.log(-0.5 * np.log(u[0])),
        "vartheta": np.log(2 * np.pi * u[1]),
        "w1": kernels[0],
        "w2": kernels[1],
    }
    return {name: value.astype(np.float32) for name, value in params.items()}


def streaming_problem(size, steps):
    """Parameters with the read-out "head" [2, N], inputs [steps, D], and targets [steps]: the inputs' delayed mean."""
    rng = np.random.default_rng(0)
    params = linear_rtu(rng, size.inputs, size.units)
    params["head"] = rng.normal(0, (2 * size.units) ** -0.5, (2, size.units)).astype(np.float32)
    x = rng.normal(size=(steps, size.inputs)).astype(np.float32)
    target = np.roll(x.mean(1), 3)
    return params, x, target
