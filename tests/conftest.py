"""Which folders are collected under which Keras, a quiet TensorFlow, no gin settings left for the next file, and the
native op on or off."""

import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")
if LEGACY:
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

# They run on both Kerases with --full, else on Keras 3 alone: what they test looks no different from tf-keras.
ON_KERAS_3 = (
    "tests/diagnostics/test_callback.py::test_memory_length_of_known_decay",
    "tests/diagnostics/test_callback.py::test_nothing_is_stale_under_weights_that_stay",
    "tests/diagnostics/test_callback.py::test_staleness_against_bptt_under_the_present_weights",
    "tests/docs/test_write_your_own_cell.py",
    "tests/examples/test_own_cell.py",
    "tests/export/test_elsewhere.py",
    "tests/export/test_inference.py::test_other_wirings",
    "tests/export/test_inference.py::test_sizes_given",
    "tests/testing/test_two_layer.py",
)


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
        more = {
            item for item in items if item.get_closest_marker("full") or (LEGACY and item.nodeid.startswith(ON_KERAS_3))
        }
        items[:] = [item for item in items if item not in more]
        config.hook.pytest_deselected(items=list(more))


def pytest_configure(config):
    if not config.getoption("--full") and config.getoption("markexpr") != "slow":
        # What XLA compiles here runs for a moment. With --full, and in learning tests, it is optimised as for users.
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        os.environ.setdefault("XLA_FLAGS", flags)
    if config.getoption("--implementation") == "tf":
        from keras_rtrl.engine import native

        native._library = lambda: (None, "this run of the tests has it switched off")
