"""Checks every function of the kernels against the reference, in new arrays and in place, twice bit for bit."""

import itertools
import sys
from typing import NamedTuple

import numpy as np

from custom_ops.kernels.test import reference
from custom_ops.kernels.test.kernels import Array
from custom_ops.kernels.test.reference import CELLS

# Largest error over largest value.
TOLERANCES = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


class Shape(NamedTuple):
    """B streams, T steps, D inputs, N units; `cut`: resets and masks; `offset`: traces off the aligned address;
    `broken`: what is before the first stream's last reset is not a number."""

    batch: int
    time: int
    inputs: int
    units: int
    cut: bool = True
    offset: int = 0
    broken: bool = False


SMALL_SHAPES = (
    Shape(1, 1, 1, 1, cut=False),
    Shape(3, 5, 7, 5),
    Shape(2, 17, 33, 12),
    Shape(9, 8, 66, 36, cut=False),
    Shape(2, 9, 13, 16, offset=1),
    Shape(3, 21, 13, 36, broken=True),
    Shape(2, 9, 7, 5, broken=True),
    # Nothing of one thing or the other.
    Shape(0, 3, 7, 5),
    Shape(0, 3, 66, 36, cut=False),
    Shape(2, 0, 7, 5),
    Shape(2, 3, 0, 36),
    Shape(2, 3, 7, 0),
    Shape(0, 0, 0, 0),
)
# Large enough that streams are shared out among blocks in every way.
LARGE_SHAPES = (
    Shape(600, 2, 5, 3),
    Shape(17, 9, 200, 600),
    Shape(3, 2, 200, 4800),
    Shape(1, 128, 64, 192),
    Shape(4, 100, 257, 512),
)


class Problem:
    """Random inputs of every function at a shape, and what they should give."""

    def __init__(self, kernels, name, dtype, shape, seed=0):
        self.kernels, self.name, self.cell, self.dtype, self.shape = kernels, name, CELLS[name], np.dtype(dtype), shape
        self._rng = np.random.default_rng(seed)
        B, T, D, N = shape[:4]
        G, stored, m, P = self.cell[:4]
        self.reset = self.mask = None
        if shape.cut:
            self.reset, self.mask = self._rng.random((B, T)) < 0.15, self._rng.random((B, T)) < 0.8
        if shape.broken:  # not a number before the last reset of the first stream, and no cotangents there
            self.reset[0, T // 2] = True
        self.rho = self._normal(P, N, scale=0.5)
        self.u, self.x = self._normal(B, T, G, N), self._normal(B, T, D)
        self.kernel = self._normal(D, G, N, scale=max(D, 1) ** -0.5)
        self.state0, self.start = self._normal(B, N, m), self._normal(B, N, m)
        self.S0, self.r0 = self._normal(B, D, stored, N, m), self._normal(B, P, N, m)
        self.e = self._normal(B, T, N, m)
        self.streamed = 0  # the step that the streaming form takes
        if shape.broken:
            cut = self.streamed = int(np.flatnonzero(self.reset[0])[-1])
            self.e[0, :cut] = self.start[0] = 0
            for values in (self.u[0, :cut], self.x[0, :cut], self.state0[0], self.S0[0], self.r0[0]):
                values[...] = np.nan
        self.d_kernel, self.d_rho = self._normal(D, G, N), self._normal(P, N)
        self.expected = reference.Chunk(self.cell, self.u, self.rho, self.state0, self.reset, self.mask)
        self.chunk = self.make_chunk(T, self.reset, self.mask)

    def cotangents(self, K):
        return self._normal(K, *self.state0.shape)

    def make_chunk(self, time, reset, mask):
        B, _, D, N = self.shape[:4]
        flags = [None if f is None else Array(self.kernels.memory, f.astype(np.uint8), np.uint8) for f in (reset, mask)]
        return self.kernels.chunk(self.name, self.dtype, B, time, D, N, [self.put(row) for row in self.rho], *flags)

    def put(self, value, offset=0):
        return Array(self.kernels.memory, value, self.dtype, offset)

    def traces(self, value):
        """An array like the traces, off the aligned address if the shape says so."""
        return self.put(value, self.shape.offset)

    def _normal(self, *shape, scale=1.0):
        # Numbers of the kernels' type, so that the errors are those of the arithmetic alone.
        return self._rng.normal(0, scale, shape).astype(self.dtype).astype(np.float64)


def run(kernels, results):
    """Every cell and dtype at every shape, in `results` and printed; the largest shape in float32 for two cells.

    Returns whether all passed.
    """
    print(f"\n{'cell':14}{'dtype':9}{'B, T, D, N':20}{'largest error / tolerance':27}of")
    dtypes, shapes, largest = ("float32", "float64"), SMALL_SHAPES + LARGE_SHAPES, LARGE_SHAPES[-1]
    for shape, name, dtype in itertools.product(shapes, CELLS, dtypes):
        if shape == largest and (name, dtype) not in (("elstm", "float32"), ("rtu_linear", "float32")):
            continue
        result = {"cell": name, "dtype": dtype, "shape": shape._asdict()}
        try:
            errors = check(kernels, name, dtype, shape)
            worst = max(errors, key=errors.get)
            result.update(errors_over_tolerance=errors, passed=errors[worst] <= 1)
            text = f"{errors[worst]:<27.3g}{worst}{'' if result['passed'] else '   FAILED'}"
        except RuntimeError as error:
            result.update(error=str(error), passed=False)
            text = f"FAILED: {error}"
        print(f"{name:14}{dtype:9}{', '.join(map(str, shape[:4])):20}{text}", flush=True)
        results.append(result)
    failed = sum(not result["passed"] for result in results)
    print(f"{failed} of {len(results)} checks failed", file=sys.stderr if failed else sys.stdout)
    return not failed


def check(kernels, name, dtype, shape, cotangents=(1, 2, 5)):
    """Largest error over tolerance by function. Raises RuntimeError on two results that differ in a bit."""
    problem = Problem(kernels, name, dtype, shape)
    errors = {}
    for function in (_forward_adjoint, _trace, _contract):
        errors.update(function(problem))
    if shape.time > 0:
        errors.update(_streaming_forward(problem))
        for K in cotangents:
            errors.update(_streaming_update(problem, K))
    return errors


def _compare(problem, what, runs):
    """runs: (got, expected) by quantity, for each of several runs that must agree bit for bit."""
    first, *others = runs
    worst = 0.0
    for quantity, (got, expected) in first.items():
        for other in others:
            if not np.array_equal(got, other[quantity][0], equal_nan=True):
                raise RuntimeError(f"{what} of {problem.name}: two runs differ in {quantity} at {problem.shape}.")
        if not np.array_equal(np.isnan(got), np.isnan(expected)):
            raise RuntimeError(f"{what} of {problem.name}: NaN in other places of {quantity} at {problem.shape}.")
        scale = np.nanmax(np.abs(expected), initial=1e-30)
        error = np.nanmax(np.abs(got - expected), initial=0.0) / scale
        worst = max(worst, float(error) if np.isfinite(error) else np.inf)
    return {what: worst / TOLERANCES[problem.dtype]}


def _scan(problem, in_place):
    """Runs the forward scan; (saved, states)."""
    B, T, _, N = problem.shape[:4]
    u = problem.put(problem.u)
    saved = u if in_place else problem.put(u.shape)
    states = [problem.put((B, T, N)) for _ in range(problem.cell.components)]
    inputs = {"state0": problem.put(problem.state0), "u": u, "chunk": problem.chunk}
    problem.kernels.call("forward", **inputs, saved=saved, states=states)
    return saved, states


def _forward_adjoint(problem):
    expected, (B, T) = problem.expected, problem.shape[:2]
    found = {"forward": [], "adjoint": [], "adjoint (instant)": []}
    for in_place in (False, True, False):
        saved, states = _scan(problem, in_place)
        found["forward"].append({"states": (np.stack([s.numpy() for s in states], axis=-1), expected.states)})
        kept = saved.numpy()
        for what, instant in (("adjoint", 0), ("adjoint (instant)", 1)):
            saved = problem.put(kept)
            du = saved if in_place else problem.put(saved.shape)
            d_rho, start = problem.put((problem.shape.batch, *problem.rho.shape)), problem.put(problem.state0.shape)
            used = Array(problem.kernels.memory, (B, T), np.uint8)
            # In one of the two cases the second component, if there is one, has no cotangents.
            e = problem.e * (np.arange(problem.cell.components) < 2 - instant)
            given = [problem.put(np.ascontiguousarray(e_i)) if e_i.any() else None for e_i in np.moveaxis(e, -1, 0)]
            inputs = {"state0": problem.put(problem.state0), "saved": saved, "states": states, "cotangents": given}
            outputs = {"du": du, "d_rho": d_rho, "start": start, "used": used}
            problem.kernels.call("adjoint", **inputs, chunk=problem.chunk, instant=instant, **outputs)
            want = expected.adjoint(e, instant)
            found[what].append({n: (array.numpy(), w) for (n, array), w in zip(outputs.items(), want, strict=True)})
    return {what: error for name, runs in found.items() for what, error in _compare(problem, name, runs).items()}


def _trace(problem):
    saved, states = _scan(problem, in_place=True)
    inputs = {"state0": problem.put(problem.state0), "x": problem.put(problem.x), "saved": saved, "states": states}
    want = dict(zip("Sr", problem.expected.traces(problem.x, problem.S0, problem.r0), strict=True))
    zeros = np.zeros_like(problem.S0), np.zeros_like(problem.r0)
    want_fresh = dict(zip("Sr", problem.expected.traces(problem.x, *zeros), strict=True))

    def run(kind):
        S0, r0 = problem.traces(problem.S0), problem.traces(problem.r0)
        S, r = (S0, r0) if kind == "in place" else (problem.traces(S0.shape), problem.traces(r0.shape))
        old = dict.fromkeys(("S0", "r0")) if kind == "from zeros" else {"S0": S0, "r0": r0}
        problem.kernels.call("trace", **inputs, **old, chunk=problem.chunk, S=S, r=r)
        return {"S": S.numpy(), "r": r.numpy()}

    def compare(what, kinds, want):
        return _compare(problem, what, [{n: (got, want[n]) for n, got in run(kind).items()} for kind in kinds])

    return {
        **compare("trace", ("new arrays", "in place", "new arrays"), want),
        **compare("trace (from zeros)", ("from zeros", "from zeros"), want_fresh),
    }


def _contract(problem):
    want = reference.contract(problem.cell, problem.start, problem.S0, problem.r0)
    runs = []
    for _ in range(2):
        d_kernel, d_rho = problem.put(problem.d_kernel), problem.put(problem.d_rho)
        inputs = {"S0": problem.traces(problem.S0), "r0": problem.traces(problem.r0), "chunk": problem.chunk}
        problem.kernels.call("contract", start=problem.put(problem.start), **inputs, d_kernel=d_kernel, d_rho=d_rho)
        sums = (d_kernel.numpy(), problem.d_kernel + want[0]), (d_rho.numpy(), problem.d_rho + want[1])
        runs.append(dict(zip(("d_kernel", "d_rho"), sums, strict=True)))
    return _compare(problem, "contract", runs)


def _one_step(problem):
    """The streaming step's chunk and what is expected of it: one step's input and resets, on the carry given."""
    at = problem.streamed
    reset = None if problem.reset is None else np.ascontiguousarray(problem.reset[:, at : at + 1])
    u = np.einsum("bd,dgn->bgn", problem.x[:, at], problem.kernel)[:, None]
    expected = reference.Chunk(problem.cell, u, problem.rho, problem.state0, reset, None)
    return problem.make_chunk(1, reset, None), expected


def _streaming_forward(problem):
    chunk, expected = _one_step(problem)
    runs = []
    for in_place in (False, True, False):
        state0 = problem.put(problem.state0)
        state, local = state0 if in_place else problem.put(state0.shape), problem.put(expected.local().shape)
        x, kernel = problem.put(np.ascontiguousarray(problem.x[:, problem.streamed])), problem.put(problem.kernel)
        inputs = {"state0": state0, "x": x, "kernel": kernel, "chunk": chunk}
        problem.kernels.call("streaming_forward", **inputs, state=state, local=local)
        runs.append({"state": (state.numpy(), expected.states[:, 0]), "local": (local.numpy(), expected.local())})
    return _compare(problem, "streaming_forward", runs)


def _streaming_update(problem, K):
    chunk, expected = _one_step(problem)
    e = problem.cotangents(K)
    traces = expected.traces(problem.x[:, problem.streamed, None], problem.S0, problem.r0)
    sums = [np.stack(of) for of in zip(*(reference.contract(problem.cell, e_k, *traces) for e_k in e), strict=True)]
    runs = []
    for _ in range(2):
        moved = {"S": problem.traces(problem.S0), "r": problem.traces(problem.r0)}
        inputs = {
            "x": problem.put(np.ascontiguousarray(problem.x[:, problem.streamed])),
            "local": problem.put(expected.local()),
            "cotangents": problem.put(e),
        }
        outputs = {"d_kernel": problem.put(sums[0].shape), "d_rho": problem.put(sums[1].shape)}
        problem.kernels.call("streaming_update", **moved, **inputs, K=K, chunk=chunk, **outputs)
        got, want = (moved | outputs).items(), (*traces, *sums)
        runs.append({name: (array.numpy(), w) for (name, array), w in zip(got, want, strict=True)})
    return _compare(problem, f"streaming_update (K = {K})", runs)
