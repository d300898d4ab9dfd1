"""The kernels' C interface (custom_ops/kernels/keras_rtrl.h) through ctypes, for CUDA devices and for the CPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from custom_ops.kernels.test.reference import CELLS

SOURCES = Path(__file__).parents[1]
DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float64): 1}


class BuildError(Exception):
    """The kernels could not be built or are not in the library named."""


def build_cuda(folder: Path, capability: str) -> Path:
    """Compiles the kernels for one compute capability ("90") and returns the library."""
    if shutil.which("nvcc") is None:
        raise BuildError("no nvcc on the PATH; name a library built elsewhere with --library")
    flags = f"-std=c++17 -O3 --threads=0 -gencode=arch=compute_{capability},code=sm_{capability} -Xcompiler=-fPIC"
    name = f'-DKERAS_RTRL_CUDA_ARCHITECTURES="sm_{capability}"'
    return _compile(["nvcc", *flags.split(), name], _cuda_sources(), folder / f"libkeras_rtrl_cuda_{capability}.so")


def build_emulated(folder: Path, sources: Path = SOURCES) -> Path:
    """Compiles the CUDA kernels as C++, to run on the CPU (custom_ops/kernels/test/cuda_emulation)."""
    emulation = SOURCES / "test" / "cuda_emulation"
    flags = f"-std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -fPIC -I{emulation} -x c++"
    inputs = [*_cuda_sources(sources), emulation / "cuda_emulation.cc"]
    return _compile(["g++", *flags.split()], inputs, folder / "libkeras_rtrl_cuda_emulated.so")


def build_cpu(folder: Path) -> Path:
    """Compiles the CPU kernels for the baseline instruction set."""
    flags = "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fPIC -DKERAS_RTRL_LEVEL=baseline"
    inputs = [SOURCES / "cpu" / name for name in ("kernels.cc", "level.cc")]
    return _compile(["g++", *flags.split()], inputs, folder / "libkeras_rtrl_cpu.so")


def _cuda_sources(sources=SOURCES):
    return sorted((sources / "cuda").glob("*.cu"))


def _compile(command, inputs, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    result = subprocess.run([*command, "-shared", "-o", target, *inputs], capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"{command[0]} could not compile the kernels:\n{result.stdout}{result.stderr}")
    return target


class HostMemory:
    """Host memory, for the CPU kernels and for the CUDA kernels emulated on the CPU."""

    stream = None

    def allocate(self, size):
        buffer = np.empty(size + 64, np.uint8)
        return -(-buffer.ctypes.data // 64) * 64, buffer

    def write(self, pointer, data):
        ctypes.memmove(pointer, data.ctypes.data, data.nbytes)

    def read(self, pointer, data):
        ctypes.memmove(data.ctypes.data, pointer, data.nbytes)

    def synchronize(self):
        pass


class Array:
    """An array in a device's memory, with guards on both sides that nothing may write to.

    Args:
      memory: `HostMemory` or a `CudaDevice`.
      value: what it holds at first, or a shape, for an array of NaNs.
      dtype: of the array.
      offset: numbers to shift it by from an aligned address.
    """

    GUARD = 256

    def __init__(self, memory, value, dtype, offset=0):
        self._memory, self.dtype = memory, np.dtype(dtype)
        empty = isinstance(value, tuple)
        self.shape = value if empty else value.shape
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._before = self.GUARD + offset * self.dtype.itemsize
        self._size = self._before + self.nbytes + self.GUARD
        self._pointer, self._buffer = memory.allocate(self._size)
        self.pointer = self._pointer + self._before
        content = np.full(self._size, 255, np.uint8)  # all bits set: a NaN
        if not empty:
            content[self._before : self._before + self.nbytes].view(self.dtype)[:] = value.ravel()
        memory.write(self._pointer, content)

    def numpy(self):
        """The content. Raises RuntimeError if a guard was written to."""
        content = np.empty(self._size, np.uint8)
        self._memory.synchronize()
        self._memory.read(self._pointer, content)
        before, end = self._before, self._before + self.nbytes
        if (content[:before] != 255).any() or (content[end:] != 255).any():
            raise RuntimeError(f"A kernel wrote outside an array of shape {self.shape}.")
        return content[before:end].view(self.dtype).reshape(self.shape)


class _Chunk(ctypes.Structure):
    _fields_ = (
        ("cell", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("batch", ctypes.c_int64),
        ("time", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("units", ctypes.c_int64),
        ("rho", ctypes.c_void_p * 4),
        ("reset", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
    )


def _structure(*fields):
    """keras_rtrl_..._arguments of these fields: pointers, but for those that come with their type."""
    fields = [(field, ctypes.c_void_p) if isinstance(field, str) else field for field in fields]
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


_CHUNK, _STATES, _COTANGENTS = ("chunk", _Chunk), ("states", ctypes.c_void_p * 2), ("cotangents", ctypes.c_void_p * 2)
_INSTANT, _K = ("instant", ctypes.c_int), ("K", ctypes.c_int64)
_ARGUMENTS = {
    "forward": _structure("state0", "u", _CHUNK, "saved", _STATES),
    "adjoint": _structure("state0", "saved", _STATES, _COTANGENTS, _CHUNK, _INSTANT, "du", "d_rho", "start", "used"),
    "trace": _structure("state0", "x", "saved", _STATES, "S0", "r0", _CHUNK, "S", "r"),
    "contract": _structure("start", "S0", "r0", _CHUNK, "d_kernel", "d_rho"),
    "streaming_forward": _structure("state0", "x", "kernel", _CHUNK, "state", "local"),
    "streaming_update": _structure("S", "r", "x", "local", "cotangents", _K, _CHUNK, "d_kernel", "d_rho"),
}


class Kernels:
    """The functions of a library.

    Args:
      path: the library.
      memory: memory of its arrays.
      cuda: the functions for CUDA devices, else those for the CPU.
    """

    def __init__(self, path, memory, cuda):
        self._library, self.memory, self._cuda = ctypes.CDLL(str(path)), memory, cuda
        try:
            self._library["keras_rtrl_cuda_forward" if cuda else "keras_rtrl_forward"]
        except AttributeError:
            raise BuildError(f"{path} holds no {'CUDA' if cuda else 'CPU'} kernels") from None

    def architectures(self):
        function = self._library.keras_rtrl_cuda_architectures
        function.restype = ctypes.c_char_p
        return function().decode()

    def cuda_version(self):
        return self._library.keras_rtrl_cuda_version()

    def reverse_threads(self, reverse):
        """Of emulated kernels: whether the threads of a block run in descending order."""
        self._library.cuda_emulation_reverse(int(reverse))

    def chunk(self, cell, dtype, batch, time, inputs, units, rho, reset=None, mask=None):
        """A `keras_rtrl_chunk`; rho: P arrays [N]; reset and mask: arrays [B, T] of uint8 or None."""
        values = {"cell": list(CELLS).index(cell), "dtype": DTYPES[np.dtype(dtype)]}
        values |= {"batch": batch, "time": time, "inputs": inputs, "units": units}
        chunk = _filled(_Chunk, {**values, "rho": rho, "reset": reset, "mask": mask})
        chunk.keep_alive = rho, reset, mask
        return chunk

    def prepare(self, name, **arguments):
        """A function of no arguments that makes the call; arguments: of keras_rtrl.h, a list for several arrays."""
        function = self._library[f"keras_rtrl_{'cuda_' if self._cuda else ''}{name}"]
        filled = _filled(_ARGUMENTS[name], arguments)
        rest, scratch = [ctypes.c_void_p(self.memory.stream)], None  # for the CPU kernels, no pool
        if self._cuda and name == "trace":
            size = self._library.keras_rtrl_cuda_scratch
            size.restype = ctypes.c_size_t
            scratch = Array(self.memory, (size(ctypes.byref(filled)),), np.uint8)
            rest.insert(0, ctypes.c_void_p(scratch.pointer))

        def call():
            error = function(ctypes.byref(filled), *rest)
            if self._cuda and error:
                raise RuntimeError(f"keras_rtrl_cuda_{name} returned the CUDA error {error}.")

        call.keep_alive = arguments, scratch
        return call

    def call(self, name, **arguments):
        self.prepare(name, **arguments)()


def _filled(structure, values):
    """A structure of these values by field: numbers, structures, arrays or None, or lists of the last two."""
    filled, fields = structure(), [field for field, _ in structure._fields_]
    if values.keys() != set(fields):
        raise TypeError(f"the fields are {', '.join(fields)}, got {', '.join(values)}")
    for field, value in values.items():
        if isinstance(value, list):
            for i, array in enumerate(value):
                getattr(filled, field)[i] = None if array is None else array.pointer
        else:
            setattr(filled, field, value.pointer if isinstance(value, Array) else value)
    return filled
