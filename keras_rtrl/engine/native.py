"""The native op: where it can run a cell, and its functions. Each has its twin in plain TensorFlow, which defines it.

The library is built from `custom_ops/` for one TensorFlow minor version and lies in `keras_rtrl/_native/`. It is loaded
when it is first asked for, once.
"""

import ctypes
import functools
import json
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_rtrl.engine.cell import ByName, RTRLCell, State

IMPLEMENTATIONS = ("auto", "tf", "native")

_FOLDER = pathlib.Path(__file__).resolve().parents[1] / "_native"
_DTYPES = (tf.float32, tf.float64)
_OPS_VERSION = 4  # of custom_ops/tf/ops.cc
# What the kernels of a cell replace: a class that overrides one of these below the class that declares `native` is
# another cell.
_REPLACED = ("phi", "coefficients", "derivatives", "unit_parameters", "gates", "components", "trace_rotations")


def info() -> dict[str, Any]:
    """What there is of the native op.

    Returns:
      "built": whether the library is there and fits; "why_not": None or the reason why it does not; "path";
      "tensorflow_built_for", "tensorflow": versions; "simd": the CPU kernels' instruction set; "cells": names of the
      kernels; "cuda", "cuda_architectures", "tensorflow_cuda": what the library was compiled with, None without CUDA,
      and the CUDA version of this TensorFlow; "devices": {name: None or why the native op does not run there}.
    """
    library, reason = _library()
    facts = {
        "built": library is not None,
        "why_not": reason,
        "path": str(_FOLDER / "libkeras_rtrl.so"),
        "tensorflow_built_for": _built_for()[0],
        "tensorflow": tf.__version__,
        "simd": None,
        "cells": (),
        "cuda": None,
        "cuda_architectures": None,
        "tensorflow_cuda": tf.sysconfig.get_build_info().get("cuda_version"),
        "devices": {},
    }
    if library is not None:
        facts["simd"] = library.c.keras_rtrl_simd_level().decode()
        facts["cells"] = tuple(library.cells)
        if library.cuda is not None:
            facts["cuda"] = f"{library.cuda // 1000}.{library.cuda % 1000 // 10}"
            facts["cuda_architectures"] = library.architectures
    for device in tf.config.get_visible_devices():
        name = device.name.removeprefix("/physical_device:")
        facts["devices"][name] = reason if device.device_type == "CPU" else reason or _why_not_on_gpus()
    return facts


def why_not(cell: RTRLCell, dtype: tf.DType | str) -> str | None:
    """None if the native op can run `cell` here and now, else the reason in words.

    Args:
      cell: an `RTRLCell`; its `native` names its kernels.
      dtype: of the traces.
    """
    library, reason = _library()
    if library is None:
        return reason
    name, reason = _kernels_of(cell)
    if name is None:
        return reason
    if name not in library.cells:
        return f"the library has no kernels called {name!r}, only {', '.join(library.cells)}"
    shape = (len(cell.gates), len(cell.stored_gates), cell.components, len(cell.unit_names))
    if shape != library.cells[name]:
        return (
            f"{type(cell).__name__} has (gates, stored gates, components, unit parameters) = {shape}, its kernels "
            f"{name!r} have {library.cells[name]}"
        )
    if tf.as_dtype(dtype) not in _DTYPES:
        return f"it computes in float32 or float64, not in {tf.as_dtype(dtype).name}"
    if traced_for_xla():
        return "XLA (jit_compile) cannot compile custom ops"
    return None


def choose(implementation: str, cell: RTRLCell, dtype: tf.DType | str) -> bool:
    """Whether the native op runs `cell`.

    Args:
      implementation: "auto": if it can and is at home on the device; "tf": never; "native": always.
      cell: an `RTRLCell`.
      dtype: of the traces.

    Raises:
      ValueError: `implementation` is another.
      RuntimeError: it is "native" and the native op cannot run here and now; the message says why.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}.")
    if implementation == "tf":
        return False
    reason = why_not(cell, dtype)
    if implementation == "native" and reason is not None:
        raise RuntimeError(f"implementation='native' cannot be had: {reason}.")
    # Beside a GPU that it does not run on, the op would copy everything to the host and back.
    return reason is None and (implementation == "native" or _why_not_on_gpus() is None)


# The functions of the native op. State and traces are those of a `Carry`, rho is {name: [N]}; reset and mask are bool
# tensors or None. None has a gradient of its own. Arguments have one order from here through the ops to the kernels.


def forward(
    cell: RTRLCell,
    state: tf.Tensor,
    u: tf.Tensor,
    rho: ByName,
    reset: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, State]:
    """Forward scan of a chunk.

    Args:
      state: [B, N, m].
      u: pre-activations [B, T, G N]; the op may take its buffer.
      reset, mask: [B, T].

    Returns:
      saved [B, T, G N], what the other functions need of u; the states, a tuple of m tensors [B, T, N].
    """
    saved, states = _ops().keras_rtrl_forward(
        state, u, _listed(cell, rho), _optional(reset), _optional(mask), cell=cell.native, m=cell.components
    )
    return saved, tuple(states)


def adjoint(
    cell: RTRLCell,
    state: tf.Tensor,
    saved: tf.Tensor,
    states: Sequence[tf.Tensor],
    cotangents: Sequence[tf.Tensor],
    rho: ByName,
    reset: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    instant: bool = False,
) -> tuple[tf.Tensor, ...]:
    """Adjoint scan of a chunk.

    Args:
      saved, states: what `forward` returned; the op may take `saved`'s buffer.
      cotangents: m tensors [B, T, N].
      instant: whether no adjoint goes from step to step.

    Returns:
      du [B, T, G N]; d_rho [B, P, N], by stream; start [B, N, m], the adjoint of the state before the chunk, zeros
      if `instant`; used [B, T] bool, false if du is 0 because no cotangent reaches the step, or it is masked.
    """
    return tuple(
        _ops().keras_rtrl_adjoint(
            state,
            saved,
            list(states),
            list(cotangents),
            _listed(cell, rho),
            _optional(reset),
            _optional(mask),
            cell=cell.native,
            instant=instant,
        )
    )


def trace(
    cell: RTRLCell,
    state: tf.Tensor,
    x: tf.Tensor,
    saved: tf.Tensor,
    states: Sequence[tf.Tensor],
    S: tf.Tensor | None,
    r: tf.Tensor | None,
    rho: ByName,
    reset: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chunk trace step.

    Args:
      x: [B, T, D].
      saved, states: what `forward` returned.
      S: [B, D, G', N, m], and r: [B, P, N, m], before the chunk; None for zeros. The op may take their buffers.

    Returns:
      S and r after the chunk.
    """
    return tuple(
        _ops().keras_rtrl_trace(
            state,
            x,
            saved,
            list(states),
            _optional(S),
            _optional(r),
            _listed(cell, rho),
            _optional(reset),
            _optional(mask),
            cell=cell.native,
        )
    )


def contract(
    cell: RTRLCell, start: tf.Tensor, S: tf.Tensor, r: tf.Tensor, d_kernel: tf.Tensor, d_rho: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds what lies before the chunk to the gradients inside it.

    Args:
      start: [B, N, m], of `adjoint`.
      S, r: the traces before the chunk.
      d_kernel: [D, G N]; the op may take its buffer.
      d_rho: [B, P, N].

    Returns:
      d_kernel [D, G N] and d_rho [P, N], summed over streams.
    """
    return tuple(_ops().keras_rtrl_contract(start, S, r, d_kernel, d_rho, cell=cell.native))


def streaming_forward(
    cell: RTRLCell, state: tf.Tensor, x: tf.Tensor, kernel: tf.Tensor, rho: ByName, reset: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """One step.

    Args:
      state: [B, N, m]; the op may take its buffer.
      x: [B, D].
      kernel: [D, G N].
      reset: [B].

    Returns:
      The new state, and the local derivatives [B, m m + G' m + P m, N] that `streaming_update` needs.
    """
    return tuple(
        _ops().keras_rtrl_streaming_forward(state, x, kernel, _listed(cell, rho), _optional(reset), cell=cell.native)
    )


def streaming_update(
    cell: RTRLCell, S: tf.Variable, r: tf.Variable, x: tf.Tensor, local: tf.Tensor, cotangents: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Trace update in place and K gradients, in one pass over the traces.

    Args:
      S, r: `tf.Variable`s, advanced by one step.
      x, local: of the step, local as `streaming_forward` returned it.
      cotangents: [K, B, N, m].

    Returns:
      d_kernel [K, D, G N] and d_rho [K, P, N], summed over streams.
    """
    for name, value in (("S", S), ("r", r)):
        if not hasattr(value, "handle"):
            raise TypeError(f"{name} must be a tf.Variable, got {type(value).__name__}.")
    return tuple(_ops().keras_rtrl_streaming_update(S.handle, r.handle, x, local, cotangents, cell=cell.native))


def _listed(cell, rho):
    return [rho[name] for name in cell.unit_names]


def _optional(value):
    return [] if value is None else [value]


# The library.


class _Library(NamedTuple):
    ops: Any  # Python functions of the ops
    c: Any  # the kernels' C interface
    cells: dict[str, tuple[int, int, int, int]]  # gates, stored gates, components, parameters by name
    cuda: int | None  # 13000 for 13.0
    architectures: str | None


class _CellInfo(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        *((field, ctypes.c_int) for field in ("gates", "stored", "components", "parameters")),
    )


_lock = threading.Lock()
_opened: tuple[_Library | None, str | None] | None = None


def _library():
    """The library and None, or None and why there is none."""
    global _opened
    if _opened is None:
        with _lock:
            if _opened is None:
                _opened = _open()
    return _opened


def _ops():
    library, reason = _library()
    if library is None:
        raise RuntimeError(f"The native op cannot be had: {reason}.")
    return library.ops


def _built_for():
    """The TensorFlow version that the library was built for and None, or None and what is missing."""
    stamp = _FOLDER / "libkeras_rtrl.json"
    if not (_FOLDER / "libkeras_rtrl.so").is_file():
        return None, "the library is not built (README.md, Install, says how)"
    try:
        return json.loads(stamp.read_text())["tensorflow"], None
    except (OSError, ValueError, TypeError, KeyError) as error:
        return None, f"{stamp} does not say which TensorFlow the library was built for ({error!r}): build it again"


def _open():
    built_for, reason = _built_for()
    if built_for is None:
        return None, reason
    # Before the library is opened: one built for another minor version may crash the process.
    if built_for.split(".")[:2] != tf.__version__.split(".")[:2]:
        return None, f"the library was built for TensorFlow {built_for}, this is TensorFlow {tf.__version__}"
    path = str(_FOLDER / "libkeras_rtrl.so")
    try:
        ops = tf.load_op_library(path)
        c = ctypes.CDLL(path)
    except (tf.errors.OpError, OSError) as error:
        return None, f"{path} cannot be loaded: {getattr(error, 'message', error)}"
    if not hasattr(c, "keras_rtrl_ops_version") or c.keras_rtrl_ops_version() != _OPS_VERSION:
        return None, f"{path} was built from other sources than this version's: build it again"
    for name in ("keras_rtrl_simd_level", "keras_rtrl_cuda_architectures"):
        if hasattr(c, name):
            getattr(c, name).restype = ctypes.c_char_p
    c.keras_rtrl_cell_info.restype = ctypes.POINTER(_CellInfo)
    cells = {}
    for i in range(c.keras_rtrl_cells()):
        kernels = c.keras_rtrl_cell_info(i).contents
        cells[kernels.name.decode()] = (kernels.gates, kernels.stored, kernels.components, kernels.parameters)
    for op in ("Forward", "Adjoint", "Trace", "Contract", "StreamingForward", "StreamingUpdate"):
        tf.RegisterGradient(f"KerasRtrl{op}")(_no_gradient)
    with_cuda = hasattr(c, "keras_rtrl_cuda_version")
    return _Library(
        ops,
        c,
        cells,
        c.keras_rtrl_cuda_version() if with_cuda else None,
        c.keras_rtrl_cuda_architectures().decode() if with_cuda else None,
    ), None


def _no_gradient(op, *_):
    raise LookupError(f"{op.type} has no gradient of its own: keras_rtrl.engine.chunked.run has the RTRL gradient.")


def _kernels_of(cell):
    """The name of `cell`'s kernels and None, or None and why it has none."""
    kind = type(cell)
    if cell.native is None:
        return None, f"{kind.__name__} has no native kernels"
    for base in kind.__mro__:
        if "native" in vars(base):
            return cell.native, None
        for name in _REPLACED:
            if name in vars(base):
                return None, f"{base.__name__} overrides {name} and declares no kernels of its own (native)"
    return None, f"{kind.__name__} has no native kernels"


def traced_for_xla() -> bool:
    """Whether the current graph, or one around it, is being traced for XLA."""
    if tf.executing_eagerly():
        return False
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False


def _why_not_on_gpus():
    """None if the library runs on every GPU that this TensorFlow sees, also if it sees none; else the reason."""
    library, reason = _library()
    gpus = tf.config.get_visible_devices("GPU")
    return reason if library is None or not gpus else _why_not_on(tuple(gpus), library.cuda, library.architectures)


@functools.cache
def _why_not_on(gpus, cuda, architectures):
    if cuda is None:
        return "the library was built without CUDA"
    driver = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
    except OSError as error:
        return f"the CUDA driver cannot be asked for its version: {error}"
    if driver.value < cuda // 1000 * 1000:
        return f"the library was built with CUDA {cuda // 1000}, the driver is of CUDA {driver.value // 1000}"
    lowest = min(int(name.removeprefix("sm_")) for name in architectures.split() if name.startswith("sm_"))
    for gpu in gpus:
        major, minor = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        if 10 * major + minor < lowest:
            return f"{gpu.name} has compute capability {major}.{minor}, the library begins at {lowest / 10}"
    return None
