"""Puts the native op into wheels built where TensorFlow, CMake and a C++ compiler are at hand. Metadata: setup.cfg."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

from setuptools import setup
from setuptools.command.build_py import build_py

CUSTOM_OPS = pathlib.Path(__file__).resolve().parent / "custom_ops"
NEEDED = {
    "TensorFlow (--no-build-isolation)": importlib.util.find_spec("tensorflow"),
    "CMake": shutil.which("cmake"),
    "a C++ compiler": shutil.which(os.environ.get("CXX", "c++")),
}
MISSING = [name for name, found in NEEDED.items() if not found]


class BuildPy(build_py):
    """Builds the op into the package's folder for the wheel; an editable install gets it from `make setup`."""

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return
        target = pathlib.Path(self.build_lib, "keras_rtrl", "_native")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        if MISSING:
            self.warn(f"without {' and '.join(MISSING)}: no native op, layers will run on plain TensorFlow")
            return
        folder = pathlib.Path(self.get_finalized_command("build").build_temp, "native")
        for arguments in (
            ["-S", CUSTOM_OPS, "-B", folder, "-D", f"KERAS_RTRL_PYTHON={sys.executable}"],
            ["--build", folder, "--target", "op", "--parallel", str(os.cpu_count())],
            ["--install", folder, "--prefix", target, "--strip"],
        ):
            subprocess.run(["cmake", *arguments], check=True)


# With the library a wheel is bound to the platform, and to no Python: TensorFlow loads it.
setup(
    cmdclass={"build_py": BuildPy},
    options={} if MISSING else {"bdist_wheel": {"plat_name": sysconfig.get_platform()}},
)
