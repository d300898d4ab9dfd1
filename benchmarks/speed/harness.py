"""Runs the contestants: built shape by shape, timed in rounds, then once more in a fresh process, for peak memory."""

import contextlib
import os
import statistics
import sys
from pathlib import Path

from benchmarks.common import Process, Unavailable, in_turn, say
from benchmarks.speed import contestants
from benchmarks.speed.contestants import QUICK_SIZES, SIZES, THREADS
from benchmarks.speed.worker import Worker

# torch needs newer packages than tf-agents allows, so the peers are in a separate environment.
PEERS = Path(sys.prefix) / "bench" / "bin" / "python"
# Threads, the same for all. Each process may also use only as many cores (worker.py).
THREAD_VARIABLES = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
     "TF_NUM_INTEROP_THREADS", "NPROC"), str(THREADS)
)  # fmt: skip
_ENVIRONMENT = {
    **THREAD_VARIABLES,
    "TF_USE_LEGACY_KERAS": "0",
    "KERAS_BACKEND": "tensorflow",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_LONG = 0.5  # seconds; steps above it are timed cold, their first microseconds do not count
_COMPARED = 100  # steps, in which rounding errors have not grown yet
_ENOUGH = 0.05  # seconds; shorter steps are timed several at a time


def start(framework, build=Worker):
    """The Process of a framework's Worker. Raises Unavailable if the framework is not installed."""
    python = str(PEERS) if framework in ("torch", "jax") and os.path.exists(PEERS) else sys.executable
    return Process(build, framework, python=python, environment=_ENVIRONMENT)


class Harness(contextlib.ExitStack):
    """Holds one process per framework until it is closed."""

    def __init__(self, rounds, quick, log=say):
        super().__init__()
        self._rounds, self._quick, self._log = rounds, quick, log
        self._sizes = QUICK_SIZES if quick else SIZES
        self._processes, self.left_out = {}, {}
        for framework in ("numpy", "tensorflow", "torch", "jax"):
            try:
                self._processes[framework] = self.enter_context(start(framework))
            except Unavailable as error:
                self._leave_out(framework, f"{error}; `make bench` installs what is compared with")

    def versions(self):
        """Of the packages that the figures depend on, by framework."""
        return {framework: process.ask("versions") for framework, process in self._processes.items()}

    def shape(self, name):
        """Every contestant's times at a shape: {"size", "rows": {name: row}, "limits": {name: row}}."""
        size = self._sizes[name]
        found = self._measure(name, contestants.of_shape(name, size, self._quick))
        rows, limits = _split(found)
        for contestant in found:
            if contestant.name in rows and not self._quick:
                self._log(f"memory: {contestant.name}")
                with start(contestant.framework) as process:
                    process.ask("build", contestant)
                    rows[contestant.name]["peak_bytes"] = process.ask("peak")
        if "keras_lstm" in rows:
            for row in rows.values():
                row["ratio"] = row["median"] / rows["keras_lstm"]["median"]
        curves = {name: row.pop("losses") for name, row in rows.items() if "losses" in row}
        for name, losses in curves.items():  # how much they differ
            pairs = zip(losses, next(iter(curves.values())), strict=True)
            rows[name]["loss_gap"] = max(abs(a - b) / (abs(b) + 1e-2) for a, b in pairs)
        return {"size": size._asdict(), "rows": rows, "limits": limits}

    def update(self):
        """engine.streaming.update at the DMLab shape: times, the copy of as many bytes, growth of memory."""
        size = self._sizes["dmlab"]._replace(steps=1)
        found = self._measure("update", contestants.of_update(size))
        rows, limits = _split(found)
        warmup, steps = (10, 50) if self._quick else (100, 1000)
        with start("tensorflow") as process:
            process.ask("build", next(contestant for contestant in found if contestant.name == "forward_update"))
            growth = process.ask(
                "growth", "forward_update", warmup // contestants.UPDATES, steps // contestants.UPDATES
            )
        found = {"size": size._asdict(), "rows": rows, "limits": limits}
        return found | {"trace_bytes": size.trace_bytes, "growth": growth | {"steps": steps}}

    def context(self):
        """Cost of one update against the length of the context it learns from, at the Atari shape."""
        size = self._sizes["atari"]
        rows = {}
        for factor in (1, 2) if self._quick else (1, 2, 4, 8, 16, 32):
            length = factor * size.steps
            found = self._measure(f"context {length}", contestants.of_context(size, length), min(self._rounds, 5))
            for contestant, row in found.items():
                of_all = rows.setdefault(contestant.name, {"label": contestant.label, "contexts": []})
                of_all["contexts"].append(row | {"steps": length})
        return {"size": size._asdict(), "rows": rows}

    def _measure(self, title, candidates, rounds=None):
        """{contestant: its times}, for those that are available."""
        ready, usual = [], {}
        for contestant in candidates:
            if contestant.framework in self._processes:
                self._log(f"{title}: {contestant.name}")
                try:
                    self._ask(contestant, "build", contestant)
                    ready.append(contestant)
                except Unavailable as error:
                    self._leave_out(contestant.name, str(error))
        for contestant in ready:
            usual[contestant] = self._ask(contestant, "time", contestant.name, repeat=1, warm=False)
        seconds = {contestant: [] for contestant in ready}
        self._log(f"{title}: rounds")
        for contestant in in_turn(ready, rounds or self._rounds):
            repeat = 1 if self._quick else max(1, min(20, round(_ENOUGH / usual[contestant])))
            warm = usual[contestant] < _LONG
            seconds[contestant].append(self._ask(contestant, "time", contestant.name, repeat=repeat, warm=warm))
        found = {contestant: _summary(times) for contestant, times in seconds.items()}
        for contestant in ready:
            if contestant.kind == "STREAMING" and "keras" not in contestant.name:  # all these have the same problem
                found[contestant]["losses"] = self._ask(contestant, "first_losses", contestant.name, _COMPARED)
        for process in self._processes.values():
            process.ask("drop")
        return found

    def _ask(self, contestant, *words, **named):
        return self._processes[contestant.framework].ask(*words, **named)

    def _leave_out(self, name, why):
        if name not in self.left_out:
            self.left_out[name] = why
            self._log(f"left out: {name}: {why}")


def _split(found):
    """Rows of the training steps and of the machine's limits, by name."""
    rows, limits = {}, {}
    for contestant, times in found.items():
        row = {"label": contestant.label, "framework": contestant.framework, **times}
        if contestant.kind == "LIMITS":
            limits[contestant.name] = row | {"work": contestant.work}
        else:
            rows[contestant.name] = row | {"steps_in_one": contestant.steps_in_one}
    return rows, limits


def _summary(seconds):
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    return {"seconds": seconds, "median": quartiles[1], "lower": quartiles[0], "upper": quartiles[2]}
