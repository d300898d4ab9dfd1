"""Runs the contestants: built shape by shape, timed in rounds, one after the other.

A round times each contestant once, in the order of the round before turned by one, so that a noisy moment of the
machine hits them alike. Then each runs once more in a fresh process, for its peak memory.
"""

import contextlib
import statistics
import sys

from benchmarks.speed import contestants
from benchmarks.speed.contestants import Contestant
from benchmarks.speed.processes import Process
from benchmarks.speed.sizes import QUICK_SIZES, SIZES, Unavailable

FRAMEWORKS = ("numpy", "tensorflow", "torch", "jax")
_LONG = 0.5  # seconds; steps above it are timed cold, their first microseconds do not count
_COMPARED = 100  # steps, in which rounding errors have not grown yet
_ENOUGH = 0.05  # seconds; shorter steps are timed several at a time


class Harness:
    """Holds one process per framework while it is used as a context."""

    def __init__(self, rounds, quick, log):
        self._rounds, self._quick, self._log = rounds, quick, log
        self._sizes = QUICK_SIZES if quick else SIZES
        self._stack = contextlib.ExitStack()
        self._processes = {}
        self.left_out = {}

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            for framework in FRAMEWORKS:
                try:
                    self._processes[framework] = stack.enter_context(Process(framework))
                except Unavailable as error:
                    self._leave_out(framework, f"{error}; `make bench` installs what is compared with")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def versions(self):
        """Of the packages that the figures depend on, by framework."""
        return {framework: process.ask("facts") for framework, process in self._processes.items()}

    def shape(self, name):
        """Every contestant's times at a shape: {"size", "rows": {name: row}, "limits": {name: row}}."""
        size = self._sizes[name]
        found = self._measure(name, contestants.of_shape(name, size, self._quick))
        rows, limits = _split(found)
        for contestant in found:
            if contestant.name in rows and not self._quick:
                rows[contestant.name]["peak_bytes"] = self._peak(contestant)
        if "keras_lstm" in rows:
            for row in rows.values():
                row["ratio"] = row["median"] / rows["keras_lstm"]["median"]
        return {"size": size._asdict(), "rows": rows, "limits": limits}

    def stream(self):
        """The streaming loops, and how far the losses of their first steps lie apart."""
        found = self.shape("stream")
        curves = {name: row.pop("losses") for name, row in found["rows"].items() if "losses" in row}
        reference = next(iter(curves.values()), None)
        for name, losses in curves.items():
            gaps = [abs(a - b) / (abs(b) + 1e-2) for a, b in zip(losses, reference, strict=True)]
            found["rows"][name]["loss_gap"] = max(gaps)
        return found

    def update(self):
        """engine.streaming.update at the DMLab shape: times, the copy of as many bytes, growth of memory."""
        size = self._sizes["dmlab"]._replace(steps=1)
        found = self._measure("update", contestants.of_update(size))
        warmup, steps = (10, 50) if self._quick else (100, 1000)
        rows, limits = _split(found)
        with Process("tensorflow") as process:
            self._build(process, contestants.forward_update(size))
            calls = {"warmup": warmup // contestants.UPDATES, "steps": steps // contestants.UPDATES}
            growth = process.ask("growth", key="forward_update", **calls)
        return {
            "size": size._asdict(),
            "rows": rows,
            "limits": limits,
            "trace_bytes": contestants.trace_bytes(size),
            "growth": growth | {"steps": steps},
        }

    def context(self):
        """Cost of one update against the length of the context it learns from, at the Atari shape."""
        size = self._sizes["atari"]
        rows = {}
        for factor in (1, 2) if self._quick else (1, 2, 4, 8, 16, 32):
            length = factor * size.steps
            found = self._measure(
                f"context {length}", contestants.of_context(size, length), rounds=min(self._rounds, 5)
            )
            for contestant, row in found.items():
                rows.setdefault(contestant.name, {"label": contestant.label, "contexts": []})
                rows[contestant.name]["contexts"].append(row | {"steps": length})
        return {"size": size._asdict(), "rows": rows}

    def _measure(self, title, candidates, rounds=None):
        """{contestant: its times}, of those that can be had."""
        ready = []
        for contestant in candidates:
            process = self._processes.get(contestant.framework)
            if process is None:
                continue
            self._say(f"{title}: {contestant.name}")
            try:
                self._build(process, contestant)
            except Unavailable as error:
                self._leave_out(contestant.name, str(error))
                continue
            ready.append((contestant, process))
        usual = {c: p.ask("time", key=c.name, repeat=1, warm=False) for c, p in ready}
        seconds = {c: [] for c, _ in ready}
        rounds = rounds or self._rounds
        for number in range(rounds):
            self._say(f"{title}: round {number + 1} of {rounds}")
            start = number % max(len(ready), 1)
            for contestant, process in ready[start:] + ready[:start]:
                repeat = 1 if self._quick else max(1, min(20, round(_ENOUGH / usual[contestant])))
                warm = usual[contestant] < _LONG
                seconds[contestant].append(process.ask("time", key=contestant.name, repeat=repeat, warm=warm))
        found = {contestant: _summary(times) for contestant, times in seconds.items()}
        for contestant, process in ready:
            if contestant.same_problem:
                found[contestant]["losses"] = process.ask("first_losses", key=contestant.name, steps=_COMPARED)
        for process in self._processes.values():
            process.ask("drop")
        return found

    def _build(self, process, contestant: Contestant):
        process.ask(
            "build",
            key=contestant.name,
            table=contestant.table,
            name=contestant.builder,
            arguments=contestant.arguments,
        )

    def _peak(self, contestant):
        self._say(f"memory: {contestant.name}")
        with Process(contestant.framework) as process:
            self._build(process, contestant)
            return process.ask("peak")

    def _leave_out(self, name, why):
        if name not in self.left_out:
            self.left_out[name] = why
            self._say(f"left out: {name}: {why}")

    def _say(self, what):
        if self._log:
            print(what, file=sys.stderr, flush=True)


def _split(found):
    """Rows of the training steps and of the machine's limits, by name."""
    rows, limits = {}, {}
    for contestant, times in found.items():
        row = {"label": contestant.label, "framework": contestant.framework, **times}
        if contestant.table == "LIMITS":
            limits[contestant.name] = row | {"work": contestant.work}
        else:
            rows[contestant.name] = row | {"steps_in_one": contestant.per_round}
    return rows, limits


def _summary(seconds):
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    return {"seconds": seconds, "median": quartiles[1], "lower": quartiles[0], "upper": quartiles[2]}
