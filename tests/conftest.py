"""Which folders are collected under which Keras, a quiet TensorFlow, and no gin settings left for the next file."""

import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if os.environ.get("TF_USE_LEGACY_KERAS") not in ("1", "true", "True"):
    # TF-Agents runs on tf-keras only.
    collect_ignore = ["environments", "networks", "agents", "drivers", "train"]


@pytest.fixture(scope="module", autouse=True)
def _clear_gin():
    yield
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()
