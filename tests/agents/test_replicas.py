"""Agents under tf.distribute: what they learn with streams on two devices, or in two processes, is what one learns."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).with_name("replicas_program.py")


def start(folder, mode, **environment):
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), mode, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    finish(start(folder, "devices"))
    return folder


@pytest.fixture(scope="module")
def workers(folder):
    with socket.socket() as first, socket.socket() as second:
        for bound in (first, second):
            bound.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{bound.getsockname()[1]}" for bound in (first, second)]
    tasks = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}} for i in range(2)]
    finish(*(start(folder, "worker", TF_CONFIG=json.dumps(task), CUDA_VISIBLE_DEVICES="") for task in tasks))
    return folder


def assert_same(got, expected, last=None):
    """All of two agents' variables, and the numbers of their `last` updates."""
    assert set(got.files) == set(expected.files)
    for name in expected.files:
        if name == "numbers":
            if last:
                np.testing.assert_allclose(got[name][-last:], expected[name][-last:], rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["r2ac", "ppo", "ppo_fresh"])
def test_two_devices_learn_what_one_does(folder, kind):
    assert_same(np.load(folder / f"{kind}_two.npz"), np.load(folder / f"{kind}_one.npz"), last=20)


@pytest.mark.parametrize("kind", ["r2ac", "ppo"])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_learn_what_one_does(folder, workers, kind, rank):
    assert_same(np.load(workers / f"{kind}_worker{rank}.npz"), np.load(folder / f"{kind}_one.npz"), last=20)


@pytest.mark.parametrize("kind", ["r2ac", "ppo"])
def test_the_comparison_tells_wrong_sums_and_carries(folder, kind):
    one, half = np.load(folder / f"{kind}_one.npz"), np.load(folder / f"{kind}_one_half.npz")
    clip = {"r2ac": 10.0, "ppo": 1.5}[kind]
    norms = one["numbers"][:, -1]
    assert norms.min() < 0.7 * clip
    assert norms.max() > 1.4 * clip
    moved = max(np.abs(one[name] - half[name]).max() for name in one.files if name.startswith("parameter"))
    assert moved > 1e-2
    for name in (name for name in one.files if name.startswith("carry")):
        assert np.abs(half[name][:2] - half[name][2:]).max() > 0.1


@pytest.mark.parametrize("kind", ["r2ac", "ppo"])
@pytest.mark.parametrize(("source", "target"), [("one", "two"), ("two", "one"), ("two", "two")])
def test_checkpoints_know_no_number_of_devices(folder, kind, source, target):
    restored = np.load(folder / f"{kind}_{source}_to_{target}_half.npz")
    assert_same(restored, np.load(folder / f"{kind}_{source}_half.npz"))
    if kind == "r2ac":
        assert_same(np.load(folder / f"{kind}_{source}_to_{target}.npz"), np.load(folder / f"{kind}_one.npz"), last=10)
