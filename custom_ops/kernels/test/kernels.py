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
        ("rho", ctypes.POINTER(ctypes.c_void_p)),
        ("reset", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
    )


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
        pointers = (ctypes.c_void_p * len(rho))(*(array.pointer for array in rho))
        chunk = _Chunk(list(CELLS).index(cell), DTYPES[np.dtype(dtype)], batch, time, inputs, units, pointers)
        chunk.reset, chunk.mask = (None if array is None else array.pointer for array in (reset, mask))
        chunk.keep_alive = rho, reset, mask
        return chunk

    def scratch(self, chunk):
        """Device memory for `trace`; None for the CPU kernels, which need none."""
        if not self._cuda:
            return None
        function = self._library.keras_rtrl_cuda_scratch
        function.restype = ctypes.c_size_t
        return Array(self.memory, (function(ctypes.byref(chunk)),), np.uint8)

    def prepare(self, name, chunk, *arguments, scratch=None):
        """A function of no arguments that makes the call; arguments: arrays, lists of arrays, None and integers."""
        function = self._library[f"keras_rtrl_{'cuda_' if self._cuda else ''}{name}"]
        first = [ctypes.byref(chunk), ctypes.c_void_p(self.memory.stream)]  # for the CPU kernels, no pool
        if self._cuda and scratch is not None:
            first.append(ctypes.c_void_p(scratch.pointer))
        rest = [self._argument(argument) for argument in arguments]

        def call():
            error = function(*first, *rest)
            if self._cuda and error:
                raise RuntimeError(f"keras_rtrl_cuda_{name} returned the CUDA error {error}.")

        call.keep_alive = chunk, arguments, scratch
        return call

    def call(self, name, chunk, *arguments, scratch=None):
        self.prepare(name, chunk, *arguments, scratch=scratch)()

    @staticmethod
    def _argument(argument):
        if isinstance(argument, int):
            return ctypes.c_int64(argument)
        if isinstance(argument, list):
            return (ctypes.c_void_p * len(argument))(*(None if a is None else a.pointer for a in argument))
        return ctypes.c_void_p(None if argument is None else argument.pointer)
