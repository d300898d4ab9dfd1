"""The CUDA sources compile for a device, without warnings."""

import shutil
import subprocess

import pytest

from custom_ops.kernels.test.kernels import SOURCES


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", ["traces_float.cu", "keras_rtrl_cuda.cu"])
def test_compiles(source, tmp_path):
    flags = (
        "-std=c++17 -gencode=arch=compute_75,code=sm_75 -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror".split()
    )
    output = tmp_path / "object.o"
    result = subprocess.run(
        ["nvcc", *flags, "-c", SOURCES / "cuda" / source, "-o", output], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert output.stat().st_size > 0
