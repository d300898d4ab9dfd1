"""The CUDA kernels' logic, without a GPU: compiled as C++, run on the CPU, checked against float64 numpy."""

import fcntl
import os
import shutil

import numpy as np
import pytest

from custom_ops.kernels.test import checks
from custom_ops.kernels.test.kernels import HostMemory, Kernels, build_emulated
from custom_ops.kernels.test.reference import CELLS

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Compiled once, also for several processes of pytest-xdist, whose folders lie in one."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with open(folder / "emulated.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = next((folder / "emulated").glob("*.so"), None)
        return built or build_emulated(folder / "emulated")


@pytest.fixture(params=[False, True], ids=["threads ascending", "threads descending"])
def kernels(library, request):
    # A missing barrier shows in one of the two orders.
    kernels = Kernels(library, HostMemory(), cuda=True)
    kernels.reverse_threads(request.param)
    return kernels


@pytest.mark.parametrize("shape", checks.SMALL_SHAPES, ids=lambda shape: "x".join(map(str, shape[:4])))
def test_every_function_equals_the_reference(kernels, shape):
    for name in CELLS:
        for dtype in (np.float32, np.float64):
            errors = checks.check(kernels, name, dtype, shape)
            assert not {what: error for what, error in errors.items() if not error <= 1}, (name, dtype)


def test_streams_shared_out_among_blocks(kernels):
    shape = checks.Shape(520, 2, 3, 2)  # several streams a group of blocks
    errors = checks.check(kernels, "elstm", np.float64, shape, cotangents=(1,))
    assert max(errors.values()) <= 1, errors


def test_unknown_cell_is_refused(library):
    kernels = Kernels(library, HostMemory(), cuda=True)
    problem = checks.Problem(kernels, "elstm", np.float32, checks.Shape(1, 1, 1, 1))
    problem.chunk.cell = len(CELLS)
    arrays = dict.fromkeys(("start", "S0", "r0", "d_kernel", "d_rho"))
    with pytest.raises(RuntimeError, match="CUDA error 1"):
        kernels.call("contract", chunk=problem.chunk, **arrays)
