"""A CUDA device by its driver, through ctypes: nothing to install."""

import ctypes
import statistics
import sys

_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _L2_BYTES, _MULTIPROCESSORS = 75, 76, 38, 16


class CudaDevice:
    """Memory, a stream and timing of the first CUDA device.

    Raises:
      OSError: there is no driver or no device.
    """

    def __init__(self):
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise OSError("no GPU to run on: there is no CUDA driver (libcuda.so.1)") from None
        count = ctypes.c_int()
        if self._driver.cuInit(0) or self._driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise OSError("no GPU to run on: the CUDA driver finds no device")
        self._device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        # The context that the runtime inside the kernels' library takes too.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 1)  # not ordered with the default stream
        self.stream = stream.value

    def _call(self, name, *arguments):
        error = getattr(self._driver, name)(*arguments)
        if error:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(error, ctypes.byref(text))
            raise RuntimeError(f"{name} failed: {(text.value or b'unknown error').decode()} ({error}).")

    def _attribute(self, which):
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return value.value

    @property
    def capability(self):
        """ "90" for 9.0."""
        return f"{self._attribute(_CAPABILITY_MAJOR)}{self._attribute(_CAPABILITY_MINOR)}"

    def describe(self):
        name, version = ctypes.create_string_buffer(256), ctypes.c_int()
        self._call("cuDeviceGetName", name, 256, self._device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return {
            "name": name.value.decode(),
            "compute_capability": f"{self.capability[:-1]}.{self.capability[-1]}",
            "multiprocessors": self._attribute(_MULTIPROCESSORS),
            "l2_bytes": self._attribute(_L2_BYTES),
            "driver_cuda_version": version.value,
        }

    def allocate(self, size):
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value, _Allocation(self, pointer.value)

    def free(self, pointer):
        # The runtime frees all when the process ends, and may be gone by then.
        if not sys.is_finalizing():
            self._driver.cuMemFree_v2(ctypes.c_uint64(pointer))

    def write(self, pointer, data):
        size = ctypes.c_size_t(data.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), ctypes.c_void_p(data.ctypes.data), size)
        # The copy is in the order of the default stream, which our stream does not wait for.
        self._call("cuCtxSynchronize")

    def read(self, pointer, data):
        size = ctypes.c_size_t(data.nbytes)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(pointer), size)

    def synchronize(self):
        self._call("cuCtxSynchronize")

    def copy(self, to, from_, nbytes):
        """Copies inside the device, in the order of the stream."""
        arguments = (ctypes.c_uint64(to.pointer), ctypes.c_uint64(from_.pointer), ctypes.c_size_t(nbytes))
        self._call("cuMemcpyDtoDAsync_v2", *arguments, ctypes.c_void_p(self.stream))

    def time(self, call, repeats=50, warm_up=10):
        """Times of `call` on the device: median and quartiles of `repeats`, in seconds."""
        for _ in range(warm_up):
            call()
        events = [(self._event(), self._event()) for _ in range(repeats)]
        for start, end in events:
            self._record(start)
            call()
            self._record(end)
        self.synchronize()
        seconds = sorted(self._between(start, end) for start, end in events)
        low, median, high = statistics.quantiles(seconds, n=4)
        return {"median": median, "quartiles": [low, high], "repeats": repeats}

    def _event(self):
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 0)
        return event

    def _record(self, event):
        self._call("cuEventRecord", event, ctypes.c_void_p(self.stream))

    def _between(self, start, end):
        milliseconds = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        for event in (start, end):
            self._call("cuEventDestroy_v2", event)
        return milliseconds.value / 1e3


class _Allocation:
    def __init__(self, device, pointer):
        self._device, self._pointer = device, pointer

    def __del__(self):
        self._device.free(self._pointer)
