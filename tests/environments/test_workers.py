"""Streams in worker processes: the same values as in one process, and what happens when a process ends."""

import contextlib
import functools
import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from tf_agents.environments import utils
from tf_agents.specs import array_spec
from tf_agents.trajectories.time_step import TimeStep

from keras_rtrl import environments
from keras_rtrl.environments.vector import VectorEnvironment
from keras_rtrl.environments.workers import WorkerVector
from keras_rtrl.train import building, cli, metrics
from keras_rtrl.train.run_folder import RunFolder

FIRST, MID, LAST = 0, 1, 2
FAIL, EXIT, SLEEP = 7, 8, 9  # actions


class Clock(VectorEnvironment):
    """Observations tell stream and time: {"seed": its seed, "now": (episode, step)}; episodes last 5 steps."""

    frames_per_step = 3

    def __init__(self, num_envs, seeds):
        now = array_spec.ArraySpec((2,), np.int16)
        action = array_spec.BoundedArraySpec((), np.int64, 0, 9)
        super().__init__(num_envs, {"seed": array_spec.ArraySpec((), np.int32), "now": now}, action)
        self._seeds, self._now = seeds, np.zeros((num_envs, 2), np.int16)
        # Like a simulator that is a program of its own and inherits what it can.
        self._program = subprocess.Popen(["sleep", "1000"], close_fds=False)

    def _observation(self):
        return {"seed": self._seeds, "now": self._now}

    def _reset(self):
        self._forget_games()
        self._now += [1, 0]
        self._now[:, 1] = 0
        return self._first(self._observation())

    def _step(self, action):
        if (action == FAIL).any():
            raise KeyError("no such door")
        if (action == EXIT).any():
            os._exit(3)
        if (action == SLEEP).any():
            time.sleep(1000)
        first = self._now[:, 1] == 5
        self._now += np.where(first[:, np.newaxis], [1, -5], [0, 1]).astype(np.int16)
        last = self._now[:, 1] == 5
        step_type = np.where(first, FIRST, np.where(last, LAST, MID)).astype(np.int32)
        self._count(np.where(first, 0, action), ~first, last)
        return TimeStep(
            step_type,
            np.where(first, 0, action).astype(np.float32),
            np.where(last, 0, 1).astype(np.float32),
            self._observation(),
        )

    def close(self):
        self._program.kill()


@pytest.fixture(autouse=True, scope="module")
def _importable():
    """Workers import this file."""
    path = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    sys.path.append(path)
    yield
    sys.path.remove(path)


@contextlib.contextmanager
def made(name="CartPole-v1", **arguments):
    env = environments.make(name, **arguments)
    try:
        yield env
    finally:
        env.close()


def assert_equal(one, two, streams=slice(None)):
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a[streams], b[streams])


def kill(pid, sort=signal.SIGKILL):
    os.kill(pid, sort)


def gone(pid):
    """Whether a process ends within a minute."""
    for _ in range(1200):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_equal_to_one_process():
    """Bit for bit over episodes, resets and finished games; what was handed out stays as it was."""
    steps, streams = 120, 5
    actions = np.random.default_rng(0).integers(0, 2, (steps, streams))
    with made(num_envs=streams, seed=3, workers=3) as env, made(num_envs=streams, seed=3, workers=0) as one:
        assert not hasattr(one, "worker_pids")
        assert (env.batch_size, env.frames_per_step) == (streams, 1)
        assert (env.time_step_spec(), env.action_spec()) == (one.time_step_spec(), one.action_spec())
        assert len(set(env.worker_pids) | {os.getpid()}) == 4
        time_steps, expected, games = [env.reset()], [one.reset()], []
        for t, action in enumerate(actions):
            time_steps.append(env.reset() if t == 60 else env.step(action))
            expected.append(one.reset() if t == 60 else one.step(action))
            games.append(env.finished_games())
            assert games[-1] == one.finished_games()
        assert len([stream for step in games for _, _, stream in step]) > streams
        for time_step, other in zip(time_steps, expected, strict=True):
            assert_equal(time_step, other)


def test_two_halves_step_both_or_neither():
    with made(num_envs=4, seed=3, workers=2) as env, made(num_envs=4, seed=3) as one:
        assert_equal(env.step(np.zeros(4, int)), one.step(np.zeros(4, int)))  # before reset: FIRST
        for bad in ([0, 0, 0, 7], [0, 0, 0]):
            with pytest.raises(ValueError, match="action must"):
                env.step(np.array(bad))
        assert_equal(env.step(np.zeros(4, int)), one.step(np.zeros(4, int)))
        assert_equal(env.current_time_step(), one.current_time_step())
        env.step_async(np.zeros(4, int))
        with pytest.raises(RuntimeError, match="step_wait"):
            env.step_async(np.zeros(4, int))
        env.step_wait()
        for half in env.halves:  # as drivers do, in turn
            half.step(np.ones(2, int))
        assert_equal(env.current_time_step(), [one.step(action * np.ones(4, int)) for action in (0, 1)][1])


def test_nested_observations_and_frames():
    env = WorkerVector(Clock, 3, seed=0, workers=2)
    try:
        assert env.frames_per_step == 3
        env.reset()
        for _ in range(5):
            time_step = env.step(np.array([1, 2, 3]))
        assert len(np.unique(time_step.observation["seed"])) == 3
        assert time_step.observation["now"].tolist() == [[1, 5]] * 3
        assert env.finished_games() == [(5.0, 5, 0), (10.0, 5, 1), (15.0, 5, 2)]
    finally:
        env.close()


def test_validates():
    with made(num_envs=3, seed=0, workers=3) as env:
        utils.validate_py_environment(env, episodes=4)


@pytest.mark.parametrize("workers", [-1, 4, 1.5, "2", True])
def test_bad_workers(workers):
    with pytest.raises(ValueError, match="workers must be a whole number of at least 0 and at most 3, got"):
        environments.make("CartPole-v1", num_envs=3, workers=workers)


@pytest.mark.parametrize("name", ["TMaze-v0", "MemoryChain-v0", "TraceConditioning-v0", "TracePatterning-v0"])
def test_no_workers_in_graph(name):
    environments.make(name, workers=0)
    with pytest.raises(ValueError, match=f"workers must be None or 0 for {name}"):
        environments.make(name, workers=1)


def test_what_building_raises_comes_as_it_is():
    with pytest.raises(ValueError, match="wind") as raised:
        environments.make("CartPole-v1", num_envs=2, workers=2, wind=3)
    assert "in a worker process" in str(raised.value.__cause__)
    with pytest.raises(ValueError, match="did you mean CartPole-v1"):
        environments.make("CartPoel-v1", workers=1)
    with pytest.raises(ValueError, match="must have options that can be pickled"):
        environments.make("CartPole-v1", workers=1, render_mode=lambda: None)
    assert multiprocessing.active_children() == []


def test_what_a_step_raises_comes_with_its_traceback():
    env = WorkerVector(Clock, 4, seed=0, workers=2)
    try:
        with pytest.raises(RuntimeError, match=r"reset\(\) must come before step_async"):
            env.step_async(np.zeros(4, int))
        env.reset()
        with pytest.raises(RuntimeError, match="step_async"):
            env.step_wait()
        pids = env.worker_pids
        with pytest.raises(ValueError, match=r"action must lie in 0\.\.9"):
            env.step(np.full(4, 10))
        with pytest.raises(KeyError, match="no such door") as raised:
            env.step(np.array([0, FAIL, 0, 0]))
        assert "test_workers.py" in str(raised.value.__cause__)
        assert env.worker_pids == pids
        assert env.reset().observation["now"].tolist() == [[2, 0]] * 4
        assert env.step(np.zeros(4, int)).observation["now"].tolist() == [[2, 1]] * 4
    finally:
        env.close()


def test_close():
    env = environments.make("CartPole-v1", num_envs=2, seed=0, workers=2)
    env.reset()
    pids = env.worker_pids
    env.step_async(np.array([0, 1]))  # a step under way does no harm
    env.close()
    env.close()
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()
    with pytest.raises(RuntimeError, match="closed"):
        env.step(np.array([0, 1]))
    del env
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    forgotten = environments.make("CartPole-v1", num_envs=1, seed=0, workers=1)
    pids = forgotten.worker_pids
    del forgotten
    gc.collect()
    assert all(gone(pid) for pid in pids)
    assert len(os.listdir("/proc/self/fd")) == before


def follows(before, action, after):
    """Whether CartPole goes from one observation to the next."""
    plain = gymnasium.make("CartPole-v1")
    plain.reset()
    plain.unwrapped.state = before.astype(np.float64)
    return np.allclose(plain.step(action)[0], after, atol=1e-5)


def test_a_killed_worker_is_replaced(caplog):
    """Its streams are truncated and begin anew; all others equal an undisturbed twin's throughout."""
    theirs, others = slice(0, 2), slice(2, 6)
    actions = np.random.default_rng(1).integers(0, 2, (90, 6))
    kills = {8: signal.SIGKILL, 9: signal.SIGKILL, 30: signal.SIGSEGV, 60: signal.SIGKILL}
    with made(num_envs=6, seed=5, workers=3) as env, made(num_envs=6, seed=5) as twin:
        before, killed = env.reset(), None
        twin.reset()
        for t, action in enumerate(actions):
            pids = env.worker_pids
            if t == 60:  # in mid-step
                kill(pids[0], signal.SIGSTOP)
                env.step_async(action)
                kill(pids[0])
                time_step = env.step_wait()
            else:
                if t in kills:
                    kill(pids[0], kills[t])
                    gone(pids[0])
                time_step = env.step(action)
            assert_equal(time_step, twin.step(action), others)
            assert [g for g in env.finished_games() if g[2] >= 2] == [g for g in twin.finished_games() if g[2] >= 2]
            assert (env.worker_pids[0] != pids[0]) == (t in kills)
            killed = pids[0] if t in kills else killed
            assert env.worker_pids[1:] == pids[1:]
            for stream in range(6):
                old, new = before.observation[stream], time_step.observation[stream]
                if before.step_type[stream] == LAST:
                    assert time_step.step_type[stream] == FIRST
                    assert np.abs(new).max() <= 0.05
                elif t in kills and stream < 2:
                    assert (time_step.step_type[stream], time_step.discount[stream]) == (LAST, 1)
                    assert time_step.reward[stream] == 0
                    np.testing.assert_array_equal(new, old)
                else:
                    assert time_step.step_type[stream] != FIRST
                    assert time_step.reward[stream] == 1
                    assert follows(old, action[stream], new)
            if t - 1 in kills and t not in kills:
                assert (time_step.step_type[theirs] != LAST).all()
                assert (time_step.observation[theirs] != twin.current_time_step().observation[theirs]).all()
                assert f"({killed}) ended with exit code -{int(kills[t - 1])}: streams [0, 1] begin new" in caplog.text
            before = time_step


@pytest.mark.parametrize("due", [[True, False], [True, True]])
def test_killed_where_a_first_is_due(due):
    """A stream whose game has just ended begins in the new process at once, one in mid-game a step later."""
    due = np.array(due)
    with made(num_envs=2, seed=5, workers=1, max_episode_steps=6 if due.all() else 500) as env:
        time_step = env.reset()
        while time_step.step_type[0] != LAST:
            action = np.array([1, time_step.observation[1, 2] > 0]).astype(int)  # the second one keeps its pole up
            time_step = env.step(action)
        assert ((time_step.step_type == LAST) == due).all()
        assert len(env.finished_games()) == due.sum()
        kill(env.worker_pids[0])
        begun = env.step(action)
        assert begun.step_type.tolist() == np.where(due, FIRST, LAST).tolist()
        assert (begun.discount.tolist(), begun.reward.tolist()) == ([1, 1], [0, 0])
        assert (np.abs(begun.observation[due]) <= 0.05).all()
        np.testing.assert_array_equal(begun.observation[~due], time_step.observation[~due])
        later = env.step(action)
        assert later.step_type.tolist() == np.where(due, MID, FIRST).tolist()
        assert (np.abs(later.observation[~due]) <= 0.05).all()
        last = env.step(action)
        assert last.step_type.tolist() == [MID, MID]
        for stream in range(2):
            assert follows(later.observation[stream], action[stream], last.observation[stream])
            if due[stream]:
                assert follows(begun.observation[stream], action[stream], later.observation[stream])
        assert env.finished_games() == []


def test_worker_that_ends_by_itself():
    """Fresh seeds that no stream had, nested observations held, simulators' programs ended; killed in reset too."""
    env = WorkerVector(Clock, 4, seed=0, workers=2)
    try:
        env.reset()
        env.step(np.zeros(4, int))
        before = env.step(np.zeros(4, int))
        (program,) = _programs(env.worker_pids[1])
        held = env.step(np.array([0, 0, 0, EXIT]))
        assert held.step_type.tolist() == [MID, MID, LAST, LAST]
        np.testing.assert_array_equal(held.observation["seed"], before.observation["seed"])
        assert held.observation["now"].tolist() == [[1, 3], [1, 3], [1, 2], [1, 2]]
        assert gone(program)
        begun = env.step(np.zeros(4, int))
        assert begun.step_type.tolist() == [MID, MID, FIRST, FIRST]
        assert begun.observation["now"].tolist() == [[1, 4], [1, 4], [1, 0], [1, 0]]
        assert len(set(begun.observation["seed"].tolist()) | set(before.observation["seed"].tolist())) == 6
        for pid in env.worker_pids:
            kill(pid)
        both = env.reset()
        assert both.step_type.tolist() == [FIRST] * 4
        assert len(set(both.observation["seed"].tolist()) & set(begun.observation["seed"].tolist())) == 0
        assert env.finished_games() == []
    finally:
        env.close()


def dying(folder, num_envs, seeds):
    """Builds as long as `folder` exists."""
    return Clock(num_envs, seeds) if os.path.exists(folder) else os._exit(4)


def test_workers_that_cannot_live(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 4 before it had built its environment"):
        WorkerVector(functools.partial(dying, "/no/such/folder"), 2, seed=0, workers=1)
    folder = tmp_path / "folder"
    folder.mkdir()
    env = WorkerVector(functools.partial(dying, str(folder)), 2, seed=0, workers=1)
    try:
        env.reset()
        folder.rmdir()
        kill(env.worker_pids[0])
        with pytest.raises(RuntimeError, match=r"worker processes of streams \[0, 1\] keep ending, exit code 4"):
            env.step(np.zeros(2, int))
    finally:
        env.close()


def littering(num_envs, seeds):
    """An environment that leaves a file behind unless it is closed, as killed simulators do."""
    tempfile.mkdtemp(prefix="simulator_")
    return Clock(num_envs, seeds)


def test_a_worker_leaves_nothing_behind(tmp_path, monkeypatch):
    """What its simulator has put into the temporary folder goes with it, however it ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = WorkerVector(littering, 2, seed=0, workers=2)
    try:
        env.reset()
        before = {path.parent for path in tmp_path.glob("*/simulator_*")}
        kill(env.worker_pids[0])
        env.step(np.zeros(2, int))
        after = {path.parent for path in tmp_path.glob("*/simulator_*")}
        assert len(before) == len(after) == len(before & after) + 1 == len(list(tmp_path.iterdir())) == 2
    finally:
        env.close()
    assert list(tmp_path.iterdir()) == []


def test_the_log_names_streams_by_their_own_numbers(caplog):
    """Those of the whole environment, also in its second half, and inside a worker."""
    env = environments.make("CartPole-v1", num_envs=5, seed=0, workers=3)
    try:
        env.reset()
        kill(env.worker_pids[2])
        env.step(np.zeros(5, int))
    finally:
        env.close()
    assert "streams [4] begin new episodes" in caplog.text


def test_an_environment_in_a_worker_knows_its_streams_numbers():
    env = WorkerVector(functools.partial(numbered), 3, seed=0, workers=2, offset=10)
    try:
        assert env.reset().observation["now"][:, 0].tolist() == [11, 12, 13]
    finally:
        env.close()


def numbered(num_envs, seeds):
    """A Clock whose episodes begin at its streams' numbers."""
    env = Clock(num_envs, seeds)
    env._now[:, 0] = env._stream_numbers
    return env


def _programs(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def _parent(connection, folder):
    """A process group with a vector: unharmed by Ctrl-C, then killed while a worker is busy."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = folder
    env = WorkerVector(littering, 2, seed=0, workers=2)
    env.reset()
    pids = env.worker_pids
    os.killpg(0, signal.SIGINT)
    time.sleep(0.2)
    now = env.step(np.zeros(2, int)).observation["now"].tolist()
    programs = [program for pid in pids for program in _programs(pid)]
    env.step_async(np.array([SLEEP, 0]))
    connection.send((now, env.worker_pids == pids, pids, programs))
    time.sleep(1000)


def test_workers_outlive_an_interrupt_but_not_their_parent(tmp_path):
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_parent, args=(theirs, str(tmp_path)))
    parent.start()
    now, same, pids, programs = ours.recv()
    assert (now, same) == ([[1, 1], [1, 1]], True)
    assert len(programs) == 2
    assert len(list(tmp_path.iterdir())) == 2
    parent.kill()
    assert all(gone(pid) for pid in (*pids, *programs))
    assert list(tmp_path.iterdir()) == []


def test_training_survives(tmp_path):
    """A worker killed in mid-training: it goes on, every loss finite; fewer streams take fewer workers."""
    run = tmp_path / "run"
    seen = []

    def rows():
        return metrics.read(RunFolder(str(run)).metrics)

    def until(count):
        end = time.monotonic() + 300
        while len(rows()) < count and time.monotonic() < end:
            time.sleep(0.05)
        return len(rows())

    def disturb():
        with contextlib.suppress(Exception):
            before = until(2)
            seen.append({child.pid for child in multiprocessing.active_children()})
            kill(min(seen[0]))
            until(before + 4)
            seen.append({child.pid for child in multiprocessing.active_children()})
        os.kill(os.getpid(), signal.SIGINT)

    bindings = (
        'environment.name = "CartPole-v1"', "environment.options = {}", "environment.num_envs = 4",
        "environment.workers = 2", "ActorCriticNetwork.units = 4", "ActorCriticNetwork.head_units = ()",
        "train.rollout_length = 5", "train.log_updates = 5",
    )  # fmt: skip
    thread = threading.Thread(target=disturb)
    thread.start()
    words = [word for binding in bindings for word in ("--gin", binding)]
    assert cli.main(["train", "tmaze_r2ac", "--frames", "10000000", "--out", str(run), *words]) == 130
    thread.join()
    before, after = seen
    assert len(before) == len(after) == 2
    assert len(before & after) == 1
    kept = rows()
    assert len(kept) >= 6
    assert all(math.isfinite(float(row["loss"])) for row in kept)
    env = building.environment(0, streams=1)
    assert len(env.worker_pids) == 1
    env.close()
