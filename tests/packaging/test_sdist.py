"""The sdist holds all that the wheel and its native op are built from, and nothing built."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from keras_rtrl._keras import LEGACY

pytestmark = pytest.mark.skipif(LEGACY, reason="the same under either Keras")

ROOT = Path(__file__).resolve().parents[2]


def test_sdist_holds_the_sources(tmp_path):
    """By setuptools' own hook, in this environment: `make test-pythons` does it in isolation and installs it."""
    pytest.importorskip("setuptools", reason="an environment of `make test-pythons`")
    if not os.access(ROOT, os.W_OK):
        pytest.skip("setuptools writes beside the sources")  # Bazel's are read-only
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    sources = [*ROOT.glob("keras_rtrl/**/*.py"), *ROOT.glob("keras_rtrl/**/*.gin")]
    for pattern in ("h", "cc", "cu", "cuh", "txt"):
        sources += ROOT.glob(f"custom_ops/**/*.{pattern}")
    wanted = {str(path.relative_to(ROOT)) for path in sources}
    wanted |= {
        "setup.py",
        "setup.cfg",
        "pyproject.toml",
        "keras_rtrl_cli.py",
        "keras_rtrl_worker.py",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    }
    assert wanted <= held, wanted - held
    assert not [name for name in held if name.endswith((".so", ".pyc")) or name.startswith(("tests", "build"))]
