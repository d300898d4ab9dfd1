"""One framework's process: builds contestants and times them when it is their turn.

Run as `python -m benchmarks.speed.worker FRAMEWORK`. Reads one JSON object a line, writes one; what frameworks print
goes to standard error.
"""

import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time

import numpy as np

from benchmarks.speed.sizes import THREADS, Size, Unavailable

# What each framework's figures depend on.
_PACKAGES = {
    "numpy": ("numpy",),
    "tensorflow": ("tensorflow", "keras", "numpy", "keras_rtrl"),
    "torch": ("torch",),
    "jax": ("jax", "jaxlib"),
}


def memory(field):
    """`field` of this process' memory, such as VmRSS (resident) or VmHWM (its peak), in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


class Worker:
    """What the lines ask for, by name."""

    def __init__(self, framework):
        self._steps = importlib.import_module(f"benchmarks.speed.{framework}_steps")
        self._steps.start()
        self._packages = _PACKAGES[framework]
        self._baseline = memory("VmRSS")
        self._built, self._first = {}, {}

    def facts(self):
        return {package: importlib.metadata.version(package) for package in self._packages}

    def has(self, table):
        return sorted(getattr(self._steps, table, {}))

    def build(self, key, table, name, arguments):
        """Makes a contestant and runs it until it is warm."""
        arguments = [Size(*value) if isinstance(value, list) else value for value in arguments]
        step = getattr(self._steps, table)[name](*arguments)
        self._first[key] = step()
        step()
        self._built[key] = step

    def time(self, key, repeat, warm):
        """Seconds of one step, the mean of `repeat`; `warm`: after one more that is not timed."""
        step = self._built[key]
        if warm:
            step()
        start = time.perf_counter()
        for _ in range(repeat):
            step()
        return (time.perf_counter() - start) / repeat

    def first_losses(self, key, steps):
        """Of a streaming loop's start."""
        return self._first[key][:steps].tolist()

    def gradients(self, arrays):
        """Those of the framework's step-by-step RTRL, for its test; arrays as nested lists."""
        found = self._steps.gradients({name: np.array(value, np.float32) for name, value in arrays.items()})
        return {name: value.tolist() for name, value in found.items()}

    def drop(self):
        self._built.clear()
        self._first.clear()
        gc.collect()

    def peak(self):
        """Bytes of this process' memory at its peak, less those after the framework had started."""
        return memory("VmHWM") - self._baseline

    def growth(self, key, warmup, steps):
        """By how many bytes resident memory, and its peak, grow over `steps` steps after `warmup`."""
        step = self._built[key]
        for _ in range(warmup):
            step()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew from what is resident now
        before = memory("VmRSS")
        for _ in range(steps):
            step()
        return {"resident": memory("VmRSS") - before, "peak": memory("VmHWM") - before}


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**what):
        answers.write(json.dumps(what) + "\n")

    # To every framework the machine has this many cores: it pins the ones that ignore the variables.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    try:
        worker = Worker(sys.argv[1])
    except ImportError as error:
        answer(unavailable=str(error))
        return
    answer(result="ready")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(result=getattr(worker, request.pop("do"))(**request))
        except Unavailable as error:
            answer(unavailable=str(error))


if __name__ == "__main__":
    main()
