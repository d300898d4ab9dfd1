"""One framework's process: builds contestants and times them when it is their turn."""

import gc
import importlib
import importlib.metadata
import os
import time
from pathlib import Path

from benchmarks.common import Unavailable
from benchmarks.speed.contestants import THREADS

# What each framework's figures depend on.
_PACKAGES = {
    "numpy": ("numpy",),
    "tensorflow": ("tensorflow", "keras", "numpy", "keras_rtrl"),
    "torch": ("torch",),
    "jax": ("jax", "jaxlib"),
}


def memory(field):
    """`field` of this process' memory, such as VmRSS (resident) or VmHWM (its peak), in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])


class Worker:
    """A framework. Raises Unavailable if it is not installed."""

    def __init__(self, framework):
        # To every framework the machine has this many cores: it pins the ones that ignore the variables.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
        try:
            self._steps = importlib.import_module(f"benchmarks.speed.{framework}_steps")
        except ImportError as error:
            raise Unavailable(str(error)) from error
        self._steps.start()
        self._framework, self._baseline = framework, memory("VmRSS")
        self._built, self._first = {}, {}

    def versions(self):
        return {package: importlib.metadata.version(package) for package in _PACKAGES[self._framework]}

    def build(self, contestant):
        """Makes a contestant and runs it until it is warm."""
        builder = contestant.name.removesuffix(f"_{contestant.framework}")
        step = getattr(self._steps, contestant.kind)[builder](*contestant.arguments)
        self._first[contestant.name] = step()
        step()
        self._built[contestant.name] = step

    def time(self, name, repeat, warm):
        """Seconds of one step, the mean of `repeat`; `warm`: after one more that is not timed."""
        step = self._built[name]
        if warm:
            step()
        start = time.perf_counter()
        for _ in range(repeat):
            step()
        return (time.perf_counter() - start) / repeat

    def first_losses(self, name, steps):
        """Of a streaming loop's start."""
        return self._first[name][:steps].tolist()

    def drop(self):
        self._built.clear()
        self._first.clear()
        gc.collect()

    def peak(self):
        """Bytes of this process' memory at its peak, less those after the framework had started."""
        return memory("VmHWM") - self._baseline

    def growth(self, name, warmup, steps):
        """By how many bytes resident memory, and its peak, grow over `steps` steps after `warmup`."""
        step = self._built[name]
        for _ in range(warmup):
            step()
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is of what is resident now
        before = memory("VmRSS")
        for _ in range(steps):
            step()
        return {"resident": memory("VmRSS") - before, "peak": memory("VmHWM") - before}
