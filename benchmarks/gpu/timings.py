"""Times of the kernels on a GPU, and of copies, cuBLAS and JAX on the same machine."""

import ctypes
import ctypes.util
import glob
import sys

import numpy as np

from benchmarks.gpu import jax_steps
from custom_ops.kernels.test.kernels import Array
from custom_ops.kernels.test.reference import CELLS

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


def _arrays(memory):
    """Makes arrays of small random numbers, float32. Large ones hold one random row again and again."""
    rng = np.random.default_rng(0)

    def make(*shape):
        row = rng.normal(0, 0.1, shape[1:]).astype(np.float32)
        return Array(memory, np.broadcast_to(row, shape), np.float32)

    return make


def copy_time(device, nbytes):
    """Of copying `nbytes` inside the device, and the rate in bytes read and written a second."""
    to, from_ = (Array(device, (nbytes // 4,), np.float32) for _ in range(2))
    time = device.time(lambda: device.copy(to, from_, nbytes))
    return {**time, "bytes_per_second": 2 * nbytes / time["median"]}


def streaming(kernels):
    """The streaming step at each of STREAMS: seconds, the rate as 2 |S| bytes, and its share of the copy's rate."""
    device, results = kernels.memory, []
    for name, (B, D, N), K in STREAMS:
        cell, arrays = CELLS[name], _arrays(device)
        G, stored, m, P = cell[:4]
        rho, x = [arrays(N) for _ in range(P)], arrays(B, D)
        chunk = kernels.chunk(name, np.float32, B, 1, D, N, rho)
        state, local = arrays(B, N, m), arrays(B, m * m + stored * m + P * m, N)
        S, r = arrays(B, D, stored, N, m), arrays(B, P, N, m)
        step = {"x": x, "local": local, "chunk": chunk}
        forward = kernels.prepare("streaming_forward", state0=state, kernel=arrays(D, G, N), state=state, **step)
        sums = {"d_kernel": arrays(K, D, G, N), "d_rho": arrays(K, P, N)}
        update = kernels.prepare("streaming_update", S=S, r=r, cotangents=arrays(K, B, N, m), K=K, **step, **sums)
        forward()  # so that the update's factors are those of a step
        copy, time = copy_time(device, S.nbytes), device.time(update)
        rate = 2 * S.nbytes / time["median"]
        results.append({
            "cell": name, "shape": {"B": B, "D": D, "N": N, "K": K}, "trace_bytes": S.nbytes,
            "forward": device.time(forward), "update": time, "bytes_per_second": rate, "copy": copy,
            "share_of_copy": rate / copy["bytes_per_second"],
        })  # fmt: skip
    return results


def chunk(kernels):
    """Every function of the chunk at the DMLab shape, and the bound of the trace step."""
    device, arrays = kernels.memory, _arrays(kernels.memory)
    B, T, D, N = DMLAB
    G, stored, m, P = CELLS["elstm"][:4]
    chunk = kernels.chunk("elstm", np.float32, B, T, D, N, [arrays(N) for _ in range(P)])
    state0, u, x, e = arrays(B, N, m), arrays(B, T, G, N), arrays(B, T, D), arrays(B, T, N)
    saved, du, states = arrays(B, T, G, N), arrays(B, T, G, N), [arrays(B, T, N)]
    d_rho, start, used = arrays(B, P, N), arrays(B, N, m), arrays(B, T)
    S0, S, r0, r = arrays(B, D, stored, N, m), arrays(B, D, stored, N, m), arrays(B, P, N, m), arrays(B, P, N, m)
    scan, old = {"state0": state0, "saved": saved, "states": states, "chunk": chunk}, {"S0": S0, "r0": r0}
    results = {"du": du, "d_rho": d_rho, "start": start, "used": used}
    sums = {"d_kernel": arrays(D, G, N), "d_rho": arrays(P, N)}
    calls = {
        "forward": kernels.prepare("forward", u=u, **scan),
        "adjoint": kernels.prepare("adjoint", **scan, cotangents=[e], instant=0, **results),
        "trace": kernels.prepare("trace", x=x, **scan, **old, S=S, r=r),
        "trace (in place)": kernels.prepare("trace", x=x, **scan, **old, S=S0, r=r0),
        "contract": kernels.prepare("contract", start=start, **old, chunk=chunk, **sums),
    }
    result = {"cell": "elstm", "shape": dict(zip("BTDN", DMLAB, strict=True)), "trace_bytes": S.nbytes}
    result |= {name: device.time(call) for name, call in calls.items()} | {"copy": copy_time(device, S.nbytes)}
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


class Cublas:
    """cuBLAS in plain float32: no TensorFloat-32, no emulation.

    Raises:
      OSError: there is no cuBLAS.
    """

    def __init__(self, stream):
        self._library = ctypes.CDLL(_find_cublas())
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        self._call("cublasSetMathMode", self._handle, 0)  # CUBLAS_DEFAULT_MATH: float32 as it is

    def _call(self, name, *arguments):
        error = getattr(self._library, name)(*arguments)
        if error:
            raise RuntimeError(f"{name} failed ({error}).")

    def trace_product(self, x, driven, S, batch, time, inputs, columns):
        """S [B, D, C] = x' driven for each stream, x [B, T, D], driven [B, T, C]; cuBLAS is column-major."""
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        arguments = [self._handle, 0, 1, columns, inputs, time, ctypes.byref(one)]  # no transpose, transpose
        for array, leading, stride in ((driven, columns, time * columns), (x, inputs, time * inputs)):
            arguments += [ctypes.c_void_p(array.pointer), leading, ctypes.c_longlong(stride)]
        stride = ctypes.c_longlong(inputs * columns)
        arguments += [ctypes.byref(zero), ctypes.c_void_p(S.pointer), columns, stride, batch]
        return lambda: self._call("cublasSgemmStridedBatched", *arguments)


def _find_cublas():
    names = [ctypes.util.find_library("cublas"), "libcublas.so.13", "libcublas.so.12"]
    for folder in ("/usr/local/cuda/lib64", *(f"{path}/nvidia/*/lib" for path in sys.path if path)):
        names += sorted(glob.glob(f"{folder}/libcublas.so.*"), reverse=True)
    for name in filter(None, names):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    raise OSError("no libcublas.so.12 or .13 on the loader's path, in CUDA's folder or among Python's packages")
