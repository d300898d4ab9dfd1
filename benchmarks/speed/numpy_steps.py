"""The machine's limits as numpy finds them: a copy by several threads at once, and a GEMM."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.speed.contestants import THREADS


def start():
    """Nothing: numpy has no runtime to start."""


def _limit_gemm(size):
    a, b = (np.random.default_rng(0).normal(size=(size, size)).astype(np.float32) for _ in range(2))
    out = np.zeros_like(a)
    return lambda: np.matmul(a, b, out=out)


def _limit_copy(elements):
    source = np.ones(elements, np.float32)
    target = np.zeros_like(source)
    pairs = list(zip(np.array_split(target, THREADS), np.array_split(source, THREADS), strict=True))
    pool = ThreadPoolExecutor(THREADS)
    return lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs))


LIMITS = {"gemm": _limit_gemm, "copy": _limit_copy}
