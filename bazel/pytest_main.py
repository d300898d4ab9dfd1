"""Runs pytest as a Bazel test, on the files given as arguments."""

import os
import sys

import pytest

if __name__ == "__main__":
    options = ["-p", "no:cacheprovider", f"--basetemp={os.environ['TEST_TMPDIR']}/pytest"]
    sys.exit(pytest.main(options + sys.argv[1:]))
