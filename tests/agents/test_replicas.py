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


def start(folder, mode, *kinds, **environment):
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), mode, str(folder), *kinds],
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


# PPO takes several steps of the optimiser an update, and has statistics of its observations.
IN_PROCESSES = ["ppo", pytest.param("r2ac", marks=pytest.mark.full)]


@pytest.fixture(scope="module")
def workers(folder, request):
    kinds = ["ppo", "r2ac"] if request.config.getoption("--full") else ["ppo"]
    with socket.socket() as first, socket.socket() as second:
        for bound in (first, second):
            bound.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{bound.getsockname()[1]}" for bound in (first, second)]
    tasks = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}} for i in range(2)]
    finish(*(start(folder, "worker", *kinds, TF_CONFIG=json.dumps(task), CUDA_VISIBLE_DEVICES="") for task in tasks))
    return folder


def assert_same(got, expected):
    assert set(got.files) == set(expected.files)
    for name in expected.files:
        if name.startswith("noise"):
            continue
        # a trace of a long memory amplifies what the weights differ by, and the gradients follow it
        tolerance = 1e-6 if name.startswith("parameter") else 1e-4
        np.testing.assert_allclose(got[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kind", ["r2ac", "ppo"])
def test_two_devices_learn_what_one_does(folder, kind):
    assert_same(np.load(folder / f"{kind}_two.npz"), np.load(folder / f"{kind}_one.npz"))


@pytest.mark.parametrize("kind", IN_PROCESSES)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_learn_what_one_does(folder, workers, kind, rank):
    assert_same(np.load(workers / f"{kind}_worker{rank}.npz"), np.load(folder / f"{kind}_one.npz"))


@pytest.mark.parametrize("kind", IN_PROCESSES)
def test_two_processes_act_by_other_noise(workers, kind):
    first, second = (np.load(workers / f"{kind}_actions{rank}.npz") for rank in (0, 1))
    for when in ("before", "after"):
        assert 0.1 < np.mean(first[when] == second[when]) < 0.7


@pytest.mark.parametrize(("kind", "clip"), [("r2ac", 5.0), ("ppo", 1.5)])
def test_the_comparison_tells_wrong_sums_and_carries(folder, kind, clip):
    one, two = (np.load(folder / f"{kind}_{name}.npz") for name in ("one", "two"))
    norms = one["numbers"][:, -1]
    assert norms.min() < 0.7 * clip
    assert norms.max() > 2 * clip
    for name in (name for name in two.files if name.startswith("carry")):
        assert np.abs(two[name][: len(two[name]) // 2] - two[name][len(two[name]) // 2 :]).max() > 0.1


@pytest.mark.parametrize("kind", ["r2ac", "ppo"])
@pytest.mark.parametrize(("source", "target"), [("one", "two"), ("two", "one"), ("two", "two")])
def test_checkpoints_know_no_number_of_devices(folder, kind, source, target):
    restored, saved = (np.load(folder / f"{kind}_{name}.npz") for name in (f"{source}_to_{target}", source))
    assert set(restored.files) == set(saved.files)
    for name in saved.files:
        if name != "numbers":
            np.testing.assert_array_equal(restored[name], saved[name], err_msg=name)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("streams", "num_streams must be a multiple of the strategy's 2 replicas, got 3"),
        ("rows", "experience must hold num_streams=4 streams, got 2"),
        ("network", "network must be made in the strategy's scope that the agent is made in"),
        ("optimizer", "optimizer must be made in the strategy's scope that the agent is made in"),
    ],
)
def test_wrong_arguments(folder, argument, message):
    assert json.loads((folder / "errors.json").read_text())[argument] == message
