"""Which folders are collected under which Keras, a quiet TensorFlow, no gin settings left for the next file, and the
native op on or off."""

import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True"):
    # They know no Keras: once is enough.
    collect_ignore = [
        "conformance/test_proofs.py",
        "custom_ops",
        "engine",
        "testing/test_cell.py",
        "testing/test_proofs.py",
    ]
else:
    # TF-Agents runs on tf-keras only.
    collect_ignore = ["environments", "networks", "agents", "distributed", "drivers", "train", "benchmarks"]


@pytest.fixture(scope="module", autouse=True)
def _clear_gin():
    yield
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()


def pytest_addoption(parser):
    parser.addoption(
        "--implementation", choices=("auto", "tf"), default="auto", help="tf: no layer of this process runs natively"
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="also what is marked full; every layer with both implementations; XLA with its optimisations",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        more = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=more)


def pytest_configure(config):
    if not config.getoption("--full") and config.getoption("markexpr") != "slow":
        # What XLA compiles here runs for a moment. With --full, and in learning tests, it is optimised as for users.
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        os.environ.setdefault("XLA_FLAGS", flags)
    if config.getoption("--implementation") == "tf":
        from keras_rtrl.engine import native

        native._library = lambda: (None, "this run of the tests has it switched off")
