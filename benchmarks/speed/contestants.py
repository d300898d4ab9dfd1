"""The shapes, who runs at which and under which label, and what the frameworks' contestants have in common."""

from typing import NamedTuple

import numpy as np

OUTPUTS = 7  # of the head
LEARNING_RATE = 1e-4
# Of the streaming loop. Radii near 1 make the loss of a linear RTU so steep that at larger rates rounding errors grow
# until the contestants' losses have nothing in common.
STREAM_RATE = 1e-6
THREADS = 2
STREAM_STEPS = 2000
UPDATES = 10  # in one timed call: loops that own their update run inside one tf.function


class Size(NamedTuple):
    """B streams, N units, D inputs, T steps of one chunk; T = 1: an update at every step."""

    batch: int
    units: int
    inputs: int
    steps: int

    @property
    def trace_width(self):
        """G' N m: two gates of one component (eLSTM), or one of two (linear RTU)."""
        return 2 * self.units

    @property
    def trace_bytes(self):
        """|S| in float32."""
        return 4 * self.batch * self.inputs * self.trace_width


SIZES = {
    "dmlab": Size(32, 512, 257, 100),
    "atari": Size(32, 256, 257, 50),
    "rtu_ppo": Size(1, 192, 64, 128),
    "wide_rtu": Size(16, 1024, 64, 128),
    "stream": Size(1, 192, 64, 1),
}

# --quick: that every contestant runs; the times mean nothing.
_QUICK = Size(3, 8, 5, 4), Size(2, 6, 5, 3), Size(1, 8, 4, 5), Size(2, 10, 4, 5), Size(1, 8, 4, 1)
QUICK_SIZES = dict(zip(SIZES, _QUICK, strict=True))


class Contestant(NamedTuple):
    """One row of a table.

    `kind` is the dict in the framework's module that holds the builder: STEPS, STREAMING, UPDATE, CONTEXT or LIMITS;
    `arguments` are the builder's, `steps_in_one` the training steps in one timed call, `work` the bytes that a limit
    moves or the operations that it does.
    """

    name: str
    label: str
    framework: str
    kind: str
    arguments: tuple
    steps_in_one: int = 1
    work: int = 0


WAYS = {
    "rtrl_native": "RTRL, native op",
    "rtrl_twin": "RTRL, TensorFlow",
    "rtrl_xla": "RTRL, TensorFlow under XLA",
    "tbptt_native": "truncated BPTT, native op",
    "tbptt_twin": "truncated BPTT, TensorFlow",
}
_ELSTM = {f"elstm_{way}": f"keras_rtrl ELSTM, {label}" for way, label in WAYS.items()}
_RTU = {f"rtu_{way}": f"keras_rtrl RTU, {label}" for way, label in WAYS.items()}
_BPTT = {"keras_lstm": "keras LSTM, BPTT", "keras_gru": "keras GRU, BPTT", "torch_lstm": "torch LSTM, BPTT"}
_TORCH = {"torch_elstm": "torch eLSTM, RTRL step by step"}
_JAX = {
    "jax_rtu": "JAX RTU, RTRL step by step, gradient at each step",
    "jax_rtu_scan": "JAX RTU, RTRL step by step, gradient of the scan",
}
_STEPS = {
    "dmlab": _ELSTM | _BPTT | _TORCH,
    "atari": _ELSTM | _RTU | _BPTT | _TORCH | _JAX,
    "rtu_ppo": _RTU | _BPTT | _JAX,
    "wide_rtu": _RTU | _BPTT | _JAX,
}
_STREAMING = {
    "stream_auto": "keras_rtrl streaming, auto",
    "stream_native": "keras_rtrl streaming, native op",
    "stream_twin": "keras_rtrl streaming, TensorFlow",
    "stream_xla": "keras_rtrl streaming, TensorFlow under XLA",
    "jax_stream": "JAX scan, as one writes it",
    "jax_stream_carried": "JAX scan, coefficients carried",
    "keras_lstm": "keras LSTM, one step of BPTT",
    "keras_gru": "keras GRU, one step of BPTT",
}


def _all(labels, kind, arguments, steps_in_one=1):
    frameworks = (name.split("_")[0] if name.startswith(("torch", "jax")) else "tensorflow" for name in labels)
    return [
        Contestant(*row, kind, arguments, steps_in_one) for row in zip(labels, labels.values(), frameworks, strict=True)
    ]


def of_shape(shape, size, quick):
    """The contestants of a shape, the machine's limits among them."""
    if shape == "stream":
        steps = 100 if quick else STREAM_STEPS
        return _all(_STREAMING, "STREAMING", (size, steps), steps)
    n = 32 if quick else 2048
    trace = size.batch, size.steps, size.inputs, size.trace_width
    return [
        *_all(_STEPS[shape], "STEPS", (size,)),
        *_copies(size),
        *_limits("gemm", "GEMM", ("numpy", "tensorflow", "torch"), (n,), 2 * n**3),
        *_limits("trace", "trace GEMM", ("tensorflow", "torch"), trace, 2 * int(np.prod(trace))),
    ]


def of_update(size):
    """`engine.streaming.update`, and copies of an array of the traces' size."""
    labels = {"update": "streaming.update", "forward_update": "streaming.forward and update"}
    return [*_all(labels, "UPDATE", (size, UPDATES), UPDATES), *_copies(size)]


def of_context(size, length):
    """One update that learns from `length` steps."""
    labels = {
        "elstm_rtrl": f"keras_rtrl ELSTM, RTRL, chunks of {size.steps}",
        "elstm_tbptt": "keras_rtrl ELSTM, BPTT over the context",
        "keras_lstm": "keras LSTM, BPTT over the context",
        "keras_gru": "keras GRU, BPTT over the context",
    }
    return _all(labels, "CONTEXT", (size, length))


def _copies(size):
    elements = size.trace_bytes // 4
    return _limits("copy", "copy", ("numpy", "tensorflow", "torch"), (elements,), 8 * elements)


def _limits(name, label, frameworks, arguments, work):
    return [Contestant(f"{name}_{f}", f"{label}, {f}", f, "LIMITS", arguments, work=work) for f in frameworks]


def linear_rtu(rng, inputs, units):
    """Initial parameters of a linear RTU as the layer draws them, one array a kernel."""
    u = rng.uniform(1e-6, 1 - 1e-6, (2, units))
    w1, w2 = rng.normal(0, inputs**-0.5, (2, inputs, units))
    params = {"nu": np.log(-0.5 * np.log(u[0])), "vartheta": np.log(2 * np.pi * u[1]), "w1": w1, "w2": w2}
    return {name: value.astype(np.float32) for name, value in params.items()}


def streaming_problem(size, steps):
    """Parameters with the read-out "head" [2, N], inputs [steps, D], and targets [steps]: the inputs' delayed mean."""
    rng = np.random.default_rng(0)
    params = linear_rtu(rng, size.inputs, size.units)
    params["head"] = rng.normal(0, (2 * size.units) ** -0.5, (2, size.units)).astype(np.float32)
    x = rng.normal(size=(steps, size.inputs)).astype(np.float32)
    target = np.roll(x.mean(1), 3)
    return params, x, target
