"""Times of the kernels on a GPU beside what the same machine's copies, cuBLAS and JAX take."""

import numpy as np

from benchmarks.gpu import jax_steps
from benchmarks.gpu.device import Cublas
from benchmarks.gpu.kernels import Array
from benchmarks.gpu.reference import CELLS

DMLAB = (32, 100, 257, 512)  # B, T, D, N
# 256 MiB of traces or more in float32; JAX runs at the first.
STREAMS = (
    ("elstm", (32, 2048, 512), 1),  # cell, (B, D, N), K
    ("elstm", (32, 2048, 512), 2),
    ("elstm", (256, 257, 512), 1),
    ("elstm", (1, 16384, 2048), 1),
    ("rtu_linear", (32, 2048, 512), 2),
    ("rtu_tanh", (32, 1024, 512), 1),
)


class _Arrays:
    """Arrays of small random numbers, float32. Large ones hold one random row again and again."""

    def __init__(self, memory):
        self._memory, self._rng = memory, np.random.default_rng(0)

    def __call__(self, *shape):
        row = self._rng.normal(0, 0.1, shape[1:]).astype(np.float32)
        return Array(self._memory, np.broadcast_to(row, shape), np.float32)


def copy_time(device, nbytes):
    """Of copying `nbytes` inside the device, and the rate in bytes read and written a second."""
    to, from_ = (Array(device, (nbytes // 4,), np.float32) for _ in range(2))
    time = device.time(lambda: device.copy(to, from_, nbytes))
    return {**time, "bytes_per_second": 2 * nbytes / time["median"]}


def streaming(kernels):
    """The streaming step at each of STREAMS: seconds, the rate as 2 |S| bytes, and its share of the copy's rate."""
    device, results = kernels.memory, []
    for name, (B, D, N), K in STREAMS:
        cell, arrays = CELLS[name], _Arrays(device)
        G, stored, m, P = cell[:4]
        rho, x = [arrays(N) for _ in range(P)], arrays(B, D)
        chunk = kernels.chunk(name, np.float32, B, 1, D, N, rho)
        state, local, S, r = (
            arrays(*shape)
            for shape in ((B, N, m), (B, m * m + stored * m + P * m, N), (B, D, stored, N, m), (B, P, N, m))
        )
        forward = kernels.prepare("streaming_forward", chunk, x, arrays(D, G, N), state, state, local)
        sums = arrays(K, D, G, N), arrays(K, P, N)
        update = kernels.prepare("streaming_update", chunk, K, x, local, arrays(K, B, N, m), S, r, *sums)
        forward()  # so that the update's factors are those of a step
        copy, time = copy_time(device, S.nbytes), device.time(update)
        rate = 2 * S.nbytes / time["median"]
        result = {
            "cell": name,
            "shape": {"B": B, "D": D, "N": N, "K": K},
            "trace_bytes": S.nbytes,
            "forward": device.time(forward),
            "update": time,
            "bytes_per_second": rate,
            "copy": copy,
            "share_of_copy": rate / copy["bytes_per_second"],
        }
        results.append(result)
    return results


def chunk(kernels):
    """Every function of the chunk at the DMLab shape, and the bound of the trace step."""
    device, arrays = kernels.memory, _Arrays(kernels.memory)
    B, T, D, N = DMLAB
    G, stored, m, P = CELLS["elstm"][:4]
    chunk = kernels.chunk("elstm", np.float32, B, T, D, N, [arrays(N) for _ in range(P)])
    state0, u, x, e = arrays(B, N, m), arrays(B, T, G, N), arrays(B, T, D), arrays(B, T, N)
    saved, du, states, last = arrays(B, T, G, N), arrays(B, T, G, N), [arrays(B, T, N)], arrays(B, N, m)
    d_rho, start, used = arrays(B, P, N), arrays(B, N, m), arrays(B, T)
    S0, S, r0, r = arrays(B, D, stored, N, m), arrays(B, D, stored, N, m), arrays(B, P, N, m), arrays(B, P, N, m)
    sums, scratch = (arrays(D, G, N), arrays(P, N)), kernels.scratch(chunk)
    before = state0, saved, states
    calls = {
        "forward": kernels.prepare("forward", chunk, state0, u, saved, states, last),
        "adjoint": kernels.prepare("adjoint", chunk, *before, [e], 0, du, d_rho, start, used),
        "trace": kernels.prepare("trace", chunk, x, *before, S0, r0, S, r, scratch=scratch),
        "trace (in place)": kernels.prepare("trace", chunk, x, *before, S0, r0, S0, r0, scratch=scratch),
        "contract": kernels.prepare("contract", chunk, start, S0, r0, *sums),
        "trace_contract": kernels.prepare("trace_contract", chunk, x, *before, start, S0, r0, *sums, scratch=scratch),
    }
    result = {
        "cell": "elstm",
        "shape": dict(zip("BTDN", DMLAB, strict=True)),
        "trace_bytes": S.nbytes,
        **{name: device.time(call) for name, call in calls.items()},
        "copy": copy_time(device, S.nbytes),
    }
    try:
        cublas = Cublas(device.stream)
    except OSError as error:
        result["cublas"] = {"missing": str(error)}
    else:
        product = cublas.trace_product(x, u, S, B, T, D, stored * N * m)
        result["cublas"] = device.time(product)
        bound = result["cublas"]["median"] + result["copy"]["median"]
        result["product_and_copy"] = bound
        result["over_product_and_copy"] = {name: result[name]["median"] / bound for name in calls if "trace" in name}
    return result


def jax_step_by_step(jax):
    """JAX's times for the chunk, and for the streaming step at the first of STREAMS."""
    B, T, D, N = DMLAB
    chunk = jax_steps.measure(jax, B, T, D, N)
    B, D, N = STREAMS[0][1]
    return {"version": jax.__version__, "chunk": chunk, "streaming": jax_steps.measure(jax, B, 1, D, N)}
