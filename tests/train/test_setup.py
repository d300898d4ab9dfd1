"""The parts of a training run."""

import subprocess
import sys

import pytest

# TensorFlow takes its threads once a process, so this has one of its own.
PROGRAM = """
import sys, tensorflow as tf
from keras_rtrl.train import cli
assert cli.main(["train", "tmaze_quick", "--frames", "400", *sys.argv[1:]]) == 0
print("threads", tf.config.threading.get_intra_op_parallelism_threads())
"""


@pytest.mark.parametrize(("threads", "taken"), [("1", "1"), ("None", "0")])  # TensorFlow says 0 for as many as cores
def test_threads_of_an_operation(tmp_path, threads, taken):
    words = ["--out", str(tmp_path / "run"), "--gin", f"train.intra_op_threads = {threads}"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"threads {taken}"
