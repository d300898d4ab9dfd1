"""Who runs at which shape, and under which label."""

from typing import NamedTuple

STREAM_STEPS = 2000
UPDATES = 10  # in one timed call: loops that own their update run inside one tf.function


class Contestant(NamedTuple):
    """One row of the table.

    Attributes:
      name: unique at a shape.
      label: what the table calls it.
      framework: whose process runs it.
      table, builder, arguments: the builder in that framework's module.
      per_round: training steps in one timed step.
      work: bytes moved or operations done by a limit.
      same_problem: whether it is a streaming loop on the common problem.
    """

    name: str
    label: str
    framework: str
    table: str
    builder: str
    arguments: tuple
    per_round: int = 1
    work: int = 0
    same_problem: bool = False

    def __hash__(self):
        return hash(self.name)


_WAYS = {
    "rtrl_native": "RTRL, native op",
    "rtrl_twin": "RTRL, TensorFlow",
    "rtrl_xla": "RTRL, TensorFlow under XLA",
    "tbptt_native": "truncated BPTT, native op",
    "tbptt_twin": "truncated BPTT, TensorFlow",
}
_OURS = {
    f"{cell}_{way}": (f"keras_rtrl {layer}, {label}", "tensorflow")
    for cell, layer in (("elstm", "ELSTM"), ("rtu", "RTU"))
    for way, label in _WAYS.items()
}
_STEPS = {
    **_OURS,
    "keras_lstm": ("keras LSTM, BPTT", "tensorflow"),
    "keras_gru": ("keras GRU, BPTT", "tensorflow"),
    "torch_lstm": ("torch LSTM, BPTT", "torch"),
    "torch_elstm": ("torch eLSTM, RTRL step by step", "torch"),
    "jax_rtu": ("JAX RTU, RTRL step by step, gradient at each step", "jax"),
    "jax_rtu_scan": ("JAX RTU, RTRL step by step, gradient of the scan", "jax"),
}
_STREAMING = {
    "stream_auto": ("keras_rtrl streaming, auto", "tensorflow"),
    "stream_native": ("keras_rtrl streaming, native op", "tensorflow"),
    "stream_twin": ("keras_rtrl streaming, TensorFlow", "tensorflow"),
    "stream_xla": ("keras_rtrl streaming, TensorFlow under XLA", "tensorflow"),
    "jax_stream": ("JAX scan, as one writes it", "jax"),
    "jax_stream_carried": ("JAX scan, coefficients carried", "jax"),
    "keras_lstm": ("keras LSTM, one step of BPTT", "tensorflow"),
    "keras_gru": ("keras GRU, one step of BPTT", "tensorflow"),
}
_CELLS = {"dmlab": ("elstm",), "atari": ("elstm", "rtu"), "rtu_ppo": ("rtu",), "wide_rtu": ("rtu",)}
_COPIERS = ("numpy", "tensorflow", "torch")


def of_shape(shape, size, quick):
    """The contestants of a shape, the machine's limits among them."""
    if shape == "stream":
        steps = 100 if quick else STREAM_STEPS
        return [
            Contestant(
                name, label, framework, "STREAMING", name, (size, steps), steps, same_problem="keras_" not in name
            )
            for name, (label, framework) in _STREAMING.items()
        ]
    cells = _CELLS[shape]
    steps = [
        Contestant(name, label, framework, "CONTESTANTS", name, (size,))
        for name, (label, framework) in _STEPS.items()
        if set(name.split("_")) & {*cells, "lstm", "gru"}
    ]
    return [*steps, *_copies(size), *_gemms(quick), *_trace_gemms(size)]


def of_update(size):
    """`engine.streaming.update`, and copies of an array of the traces' size."""
    return [
        Contestant("update", "streaming.update", "tensorflow", "UPDATE", "update", (size, UPDATES), UPDATES),
        forward_update(size),
        *_copies(size),
    ]


def forward_update(size):
    """`streaming.forward` and `update`."""
    label = "streaming.forward and update"
    return Contestant("forward_update", label, "tensorflow", "UPDATE", "forward_update", (size, UPDATES), UPDATES)


def of_context(size, length):
    """One update that learns from `length` steps."""
    labels = {
        "elstm_rtrl": f"keras_rtrl ELSTM, RTRL, chunks of {size.steps}",
        "elstm_tbptt": "keras_rtrl ELSTM, BPTT over the context",
        "keras_lstm": "keras LSTM, BPTT over the context",
        "keras_gru": "keras GRU, BPTT over the context",
    }
    return [Contestant(n, label, "tensorflow", "CONTEXT", n, (size, length)) for n, label in labels.items()]


def trace_width(size):
    """G' N m: two gates of one component (eLSTM), or one of two (linear RTU)."""
    return 2 * size.units


def trace_bytes(size):
    """|S| in float32."""
    return 4 * size.batch * size.inputs * trace_width(size)


def _copies(size):
    elements = trace_bytes(size) // 4
    return [
        Contestant(f"copy_{f}", f"copy, {f}", f, "LIMITS", "copy", (elements,), work=8 * elements) for f in _COPIERS
    ]


def _gemms(quick):
    n = 32 if quick else 2048
    return [Contestant(f"gemm_{f}", f"GEMM, {f}", f, "LIMITS", "gemm", (n,), work=2 * n**3) for f in _COPIERS]


def _trace_gemms(size):
    shape = (size.batch, size.steps, size.inputs, trace_width(size))
    work = 2 * size.batch * size.steps * size.inputs * trace_width(size)
    return [
        Contestant(f"trace_{f}", f"trace GEMM, {f}", f, "LIMITS", "trace", shape, work=work)
        for f in ("tensorflow", "torch")
    ]
