"""The kernels' header is C as well as C++."""

import shutil
import subprocess

import pytest

from custom_ops.kernels.test.kernels import SOURCES


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_is_c():
    flags = "-std=c99 -pedantic -Wall -Wextra -Werror -fsyntax-only -x c".split()
    result = subprocess.run(["gcc", *flags, SOURCES / "keras_rtrl.h"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
