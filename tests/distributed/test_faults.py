"""Kills of actors, of learners and of machines: training goes on, and no stream's traces meet another's.

Each kind of kill happens once, at a random moment; ten times in the slow tests, where the learner's raylet is one more.
"""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

ray = pytest.importorskip("ray", reason="actors need Ray, which is not installed (the extra ray)")

import tf_keras  # noqa: E402
from ray._private import state  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from keras_rtrl import distributed  # noqa: E402
from keras_rtrl.train import building, config, loop, metrics  # noqa: E402, F401  loop: its settings are configured
from keras_rtrl.train.run_folder import RunFolder  # noqa: E402
from keras_rtrl.train.runners import make_actors  # noqa: E402

PRESET = "atari_r2ac_cpu"
BATCH, STREAMS, ROLLOUT, LOG = 4, 2, 10, 10
BINDINGS = (
    "environment.name = 'Acrobot-v1'",  # long episodes: a mistake in the traces lasts
    f"environment.num_envs = {BATCH}",
    f"actors.num_streams = {STREAMS}",
    "ActorCriticNetwork.encoder = 'mlp'",
    "ActorCriticNetwork.encoder_units = (16,)",
    "ActorCriticNetwork.units = 8",
    "ActorCriticNetwork.core_options = {'forget_bias': 6.0}",  # and is not forgotten
    f"train.rollout_length = {ROLLOUT}",
    f"train.log_updates = {LOG}",
    "train.checkpoint_minutes = 0.005",
)
ACTORS_NODE = {"num_cpus": 3, "env_vars": {"RAY_max_direct_call_object_size": "100"}}
PATIENCE = 300  # seconds for what takes a few on a machine with nothing else to do

GONE = 90  # seconds; some parts of a Ray that was killed whole look for it for 60

once_and_ten_times = pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])


def marked():
    """{pid: command line} of the processes that this file's programs began."""
    mark = f"KERAS_RTRL_FAULTS={os.getpid()}".encode()
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            if mark in environ.read().split(b"\0"):
                with open(f"/proc/{pid}/cmdline", "rb") as line:
                    found[int(pid)] = line.read().replace(b"\0", b" ").decode().strip()
    return found


def parent(pid):
    return int(stat(pid)[1])


def cpu(pid):
    """CPU seconds of a process."""
    words = stat(pid)
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def stat(pid):
    """The words of /proc/PID/stat after the process' name; zeros where there is no such process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()
    return ["0"] * 50


def left(others, raylets):
    """The marked processes not among the `others`: no idle workers of a cluster's `raylets`, none of Ray's agents."""
    found = [(pid, line) for pid, line in marked().items() if pid not in others and "Agent" not in line]
    return [pid for pid, line in found if "ray::IDLE" not in line or parent(pid) not in {r.pid for r in raylets}]


def wait_until(condition, seconds=PATIENCE, what=""):
    """Seconds until condition() is true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, what or "waited for too long"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(scope="module", autouse=True)
def _marked():
    """Marks all that Ray begins, and sees that nothing of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_RTRL_FAULTS", str(os.getpid()))
        patch.setenv("SPT_NOENV", "1")  # Ray's titles of processes would overwrite the mark
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_health_check_period_ms", "1000")  # a dead node is noticed after five
        yield
        wait_until(lambda: not marked(), GONE, "processes that are left")


@contextlib.contextmanager
def cluster_of(actors_nodes):
    """A cluster of the learner's node, and of others for actors, each of which has room for all.

    Their rollouts, small as they are, go through the object store.
    """
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(actors_nodes):
            cluster.add_node(**ACTORS_NODE)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2) as cluster:
        yield cluster


class Command:
    """`keras-rtrl train` in a process of its own, which ends with the test if not before."""

    begun = []  # noqa: RUF012

    def __init__(self, *words, out):
        self.run = RunFolder(out)
        self._log = open(f"{out}.log", "a+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keras_rtrl_cli", "train", *words],
            stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        self.begun.append(self)

    def updates(self):
        """Of the last row of metrics.csv, 0 where there is none."""
        return max((int(row["updates"]) for row in metrics.read(self.run.metrics)), default=0)

    def wait_for_updates(self, updates):
        def there():
            assert self.process.poll() is None, self.log()
            return self.updates() >= updates

        return wait_until(there, what=self.log())

    def kill(self):
        self.process.kill()
        self.process.wait()

    def log(self):
        self._log.seek(0)
        return self._log.read()[-20000:]


@pytest.fixture(autouse=True)
def _commands():
    yield
    while Command.begun:
        Command.begun.pop().kill()


def saved_counters(run):
    """The counters in the newest checkpoint of a run."""
    reader = tf.train.load_checkpoint(run.checkpoints)
    return json.loads(reader.get_tensor("counters/.ATTRIBUTES/py_state"))


class Bank(distributed.StreamBank):
    """Also keeps what was learnt from, and drops a rollout where told to."""

    def __init__(self, *args):
        super().__init__(*args)
        self.learnt, self.times, self.began, self.drop = [], [], {}, set()

    def fits(self, actor, rollout):
        if actor in self.drop:
            self.drop.remove(actor)
            return False
        return super().fits(actor, rollout)

    def store(self, actors, rollouts):
        super().store(actors, rollouts)
        self.learnt += zip(actors, rollouts, strict=True)
        self.times.append(time.monotonic())
        for actor, rollout in zip(actors, rollouts, strict=True):
            self.began.setdefault((actor, rollout.life), self.times[-1])

    def life(self, actor):
        """That of the last rollout of an actor, None before the first."""
        return next((rollout.life for number, rollout in reversed(self.learnt) if number == actor), None)


class Learner:
    """What `keras-rtrl train` learns with, in this process, learning rate 0; more streams than a batch has."""

    def __init__(self, cluster, actors):
        settings = {"num_actors": actors, "address": cluster.address, "timeout": float(PATIENCE)}
        bindings = [f"actors.{name} = {value!r}" for name, value in settings.items()]
        config.load(config.find(PRESET), [*BINDINGS, *bindings])
        env = building.environment(0, streams=1)
        self.network = building.network(env)
        agent = building.agent(env, self.network, tf_keras.optimizers.SGD(0.0), building.agent_config(), BATCH)
        banks, fleets = [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "StreamBank", lambda *args: banks.append(Bank(*args)) or banks[0])
            fleet = distributed.Fleet
            patch.setattr(distributed, "Fleet", lambda *a, **k: fleets.append(fleet(*a, **k)) or fleets[0])
            self.runner = make_actors(env, agent, ROLLOUT, building.actors(BATCH), 3, True)
        self.bank, self.fleet = banks[0], fleets[0]

    def learn(self, updates=1):
        for _ in range(updates):
            self.runner.run(1, None)

    def learn_until(self, condition, seconds=PATIENCE, what=""):
        def learnt():
            self.learn()
            return condition()

        return wait_until(learnt, seconds, what)

    def learn_during(self, function, *args):
        """Learns while function(*args) runs in another thread, and then once more; returns its result."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(function, *args)
            while not future.done():
                self.learn()
                time.sleep(0.1)
            result = future.result()
        self.learn()
        return result


@pytest.fixture(scope="module")
def learner(cluster):
    learner = Learner(cluster, 3)
    learner.learn_until(lambda: len({actor for actor, _ in learner.bank.learnt}) == 3)
    yield learner
    learner.runner.close()


def unbroken(learnt):
    """({actor: its rollouts since the last break}, restarts, gaps); no rollout is learnt from twice, or too late."""
    seen, spans, restarts, gaps = set(), {}, 0, 0
    for actor, rollout in learnt:
        assert (actor, rollout.life, rollout.start) not in seen
        seen.add((actor, rollout.life, rollout.start))
        before = spans[actor][-1] if actor in spans else None
        same = before is not None and before.life == rollout.life
        if same:
            assert rollout.start >= before.start + ROLLOUT
        if same and rollout.start == before.start + ROLLOUT:
            ends, begins = (x.frames.observation["observation"][:, t] for x, t in ((before, -1), (rollout, 0)))
            np.testing.assert_array_equal(ends, begins)
            spans[actor].append(rollout)
            continue
        restarts += before is not None and not same
        gaps += rollout.start > 0
        if not rollout.start:
            assert np.all(rollout.frames.step_type[:, 0] == 0)
            assert not any(np.any(part.state) for part in rollout.state)
        spans[actor] = [rollout]
    return spans, restarts, gaps


def check(learner):
    """The carry kept of each stream is that of its rollouts since its last break, and of nothing else."""
    bank, network = learner.bank, learner.network
    spans, restarts, gaps = unbroken(bank.learnt)
    assert (bank.restarts, bank.gaps) == (restarts, gaps)
    kept, *_ = bank.values()
    for actor, rollouts in spans.items():
        carry = network.get_initial_carry(STREAMS)
        carry = tuple(part._replace(state=own.state) for part, own in zip(carry, rollouts[0].state, strict=True))
        for i in range(0, len(rollouts), 100):
            frames = [rollout.frames for rollout in rollouts[i : i + 100]]
            frames = tf.nest.map_structure(lambda *x: tf.concat([part[:, :-1] for part in x], axis=1), *frames)
            reset = tf.equal(frames.step_type, 0)
            _, carry = network.core(network.encode(frames.observation, reset), reset, carry)
        for part, expected in zip(tf.nest.flatten(kept), tf.nest.flatten(carry), strict=True):
            assert np.any(expected)
            rows = part[actor * STREAMS : (actor + 1) * STREAMS]
            np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-5)


def alive():
    """{actor's number: (pid, node)} of the actors that run."""
    return {
        int(actor["Name"].split()[1]): (actor["Pid"], actor["Address"]["NodeID"])
        for actor in state.actors().values()
        if actor["State"] == "ALIVE"
    }


def report(**figures):
    print(json.dumps(figures, default=lambda x: round(float(x), 2)), flush=True)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_learner(cluster, kills, tmp_path):
    """Each time after an even number of kills it begins a Ray of its own, else it joins the cluster."""
    rng, out, others = np.random.default_rng(kills), str(tmp_path / "run"), set(marked())
    nodes = [node.all_processes["raylet"][0].process for node in cluster.list_all_nodes()]
    bindings = [word for binding in BINDINGS for word in ("--gin", binding)]
    figures = {"updates": [], "row_after": [], "gone_after": []}
    words = [PRESET, "--frames", "100000000", "--out", out, "--actors", "2", *bindings]
    row = 0
    for i in range(kills):
        began = time.monotonic()
        command = Command(*words, out=out)
        if i and rng.random() < 0.3:
            time.sleep(rng.uniform(0, 20))  # it may still be starting
        else:
            command.wait_for_updates(row + LOG)
            figures["row_after"].append(time.monotonic() - began)
            time.sleep(rng.uniform(0, 2))
        command.kill()
        figures["gone_after"].append(wait_until(lambda: not left(others, nodes), GONE, "processes that are left"))
        counted, row = saved_counters(command.run), command.updates()
        assert counted["frames"] == counted["updates"] * BATCH * ROLLOUT
        figures["updates"].append(counted["updates"])
        row = min(row, counted["updates"])  # the rows after the checkpoint are to be dropped
        address = cluster.address if i % 2 == 0 else None
        words = ["--resume", out, "--gin", f"actors.address = {address!r}"]
    assert all(raylet.poll() is None for raylet in nodes)
    end = counted["updates"] + 25
    command = Command(*words, "--frames", str(end * BATCH * ROLLOUT), out=out)
    assert command.process.wait(PATIENCE) == 0, command.log()
    wait_until(lambda: not left(others, nodes), GONE, "processes that are left")
    rows = [(int(row["updates"]), int(row["frames"])) for row in metrics.read(command.run.metrics)]
    expected = [*range(LOG, end + 1, LOG), *([end] if end % LOG else [])]
    assert rows == [(updates, updates * BATCH * ROLLOUT) for updates in expected]
    record, counted = command.run.read_record(), saved_counters(command.run)
    assert record["status"] == "finished"
    assert (record["updates"], record["frames"]) == (counted["updates"], counted["frames"]) == rows[-1]
    report(kills=kills, **figures)


@pytest.mark.slow
def test_killed_raylet_of_the_learner(tmp_path):
    """Ten times training ends and goes on in a new cluster. Ray may end the process before it says why."""
    rng, out = np.random.default_rng(10), str(tmp_path / "run")
    bindings = [word for binding in BINDINGS for word in ("--gin", binding)]
    words = [PRESET, "--frames", "100000000", "--out", out, "--actors", "2", *bindings]
    figures = {"ended_after": [], "said_why": [], "updates": []}
    row = 0
    for _ in range(10):
        with cluster_of(1) as cluster:
            command = Command(*words, "--gin", f"actors.address = {cluster.address!r}", out=out)
            command.wait_for_updates(row + LOG)
            time.sleep(rng.uniform(0, 2))
            raylet = cluster.head_node.all_processes["raylet"][0].process
            raylet.kill()
            raylet.wait()
            began = time.monotonic()
            assert command.process.wait(60) == 1, command.log()
            figures["ended_after"].append(time.monotonic() - began)
        record, counted, row = command.run.read_record(), saved_counters(command.run), command.updates()
        figures["updates"].append(counted["updates"])
        assert counted["frames"] == counted["updates"] * BATCH * ROLLOUT
        log = command.log().rpartition("run folder")[2]
        assert "Traceback" not in log
        figures["said_why"].append("training stopped: Ray has failed: " in log)
        if figures["said_why"][-1]:
            assert record["status"] == "stopped"
            assert record["updates"] == counted["updates"] >= row
        else:
            assert record["status"] == "running"
        row = min(row, counted["updates"])
        words = ["--resume", out]
    end = counted["updates"] + 15
    with cluster_of(1) as cluster:
        words += ["--frames", str(end * BATCH * ROLLOUT), "--gin", f"actors.address = {cluster.address!r}"]
        command = Command(*words, out=out)
        assert command.process.wait(PATIENCE) == 0, command.log()
    rows = [int(row["updates"]) for row in metrics.read(command.run.metrics)]
    assert rows == [*range(LOG, end + 1, LOG), *([end] if end % LOG else [])]
    report(**figures)


@pytest.mark.slow
def test_no_room_for_the_actors_of_a_dead_node(cluster, tmp_path):
    """Training ends with the time-out's error, and a checkpoint of its last update."""
    out, patience = str(tmp_path / "run"), PATIENCE / 2
    settings = (*BINDINGS, "actors.cpus = 2", f"actors.timeout = {patience}", f"actors.address = {cluster.address!r}")
    bindings = [word for binding in settings for word in ("--gin", binding)]
    command = Command(PRESET, "--frames", "100000000", "--out", out, "--actors", "2", *bindings, out=out)
    command.wait_for_updates(LOG)
    node = next(iter(cluster.worker_nodes))
    raylet = node.all_processes["raylet"][0].process
    raylet.kill()
    raylet.wait()
    began = time.monotonic()
    assert command.process.wait(patience + 60) == 1
    report(ended_after=time.monotonic() - began, timeout=patience)
    assert "no rollout from actor" in command.log()
    assert saved_counters(command.run)["updates"] >= command.updates() > 0
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(**ACTORS_NODE)


@once_and_ten_times
def test_killed_actor(learner, kills):
    bank, rng = learner.bank, np.random.default_rng(kills)
    first, before = len(bank.learnt), bank.restarts
    lives = {actor: bank.life(actor) for actor in range(3)}

    def kill():
        killed = []
        for _ in range(kills):
            time.sleep(rng.uniform(0, 2))
            # others may still be on their way back
            wait_until(lambda: set(alive()) - {actor for actor, life, _ in killed if bank.life(actor) == life})
            free = set(alive()) - {actor for actor, life, _ in killed if bank.life(actor) == life}
            actor = int(rng.choice(sorted(free)))
            killed.append((actor, bank.life(actor), time.monotonic()))
            os.kill(alive()[actor][0], signal.SIGKILL)
        wait_until(lambda: all(bank.life(actor) != life for actor, life, _ in killed))
        return killed

    killed = learner.learn_during(kill)
    assert bank.restarts - before == kills
    changes = dict.fromkeys(range(3), 0)
    for actor, rollout in bank.learnt[first:]:
        changes[actor] += rollout.life != lives[actor]
        lives[actor] = rollout.life
    assert changes == {actor: sum(number == actor for number, _, _ in killed) for actor in range(3)}
    check(learner)
    on = [min(t for t in bank.times if t > moment) - moment for _, _, moment in killed]
    back = [min(t for (i, life), t in bank.began.items() if i == actor and t > moment) for actor, _, moment in killed]
    back = [t - moment for t, (_, _, moment) in zip(back, killed, strict=True)]
    report(kills=kills, restarts=bank.restarts - before, gaps=bank.gaps, next_update=on, back=back)


def test_gap_begins_with_zero_traces(learner):
    gaps = learner.bank.gaps
    learner.bank.drop = {0, 2}
    learner.learn_until(lambda: learner.bank.gaps >= gaps + 2)
    learner.learn(4)
    assert learner.bank.gaps == gaps + 2
    check(learner)


def test_kept_traces_after_a_gap_are_noticed(learner):
    continues = learner.bank._continues
    learner.bank._continues = lambda *args: continues(*args) or True
    learner.bank.drop = {0, 1, 2}
    learner.learn_until(lambda: not learner.bank.drop)
    learner.learn(2)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(learner)
    del learner.bank._continues
    gaps = learner.bank.gaps
    learner.bank.drop = {0, 1, 2}
    learner.learn_until(lambda: learner.bank.gaps >= gaps + 3)  # all mended now
    check(learner)


def test_swapped_rows_of_the_bank_are_noticed(learner):
    learner.learn(2)
    rows = np.arange(3 * STREAMS)
    rows[[0, STREAMS]] = rows[[STREAMS, 0]]
    whole = tf.nest.flatten(learner.bank.values())
    for variable, value in zip(learner.bank.variables, whole, strict=True):
        variable.assign(value[rows])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(learner)
    for variable, value in zip(learner.bank.variables, whole, strict=True):
        variable.assign(value)
    check(learner)


def test_slow_learner_stops_the_actors(learner):
    queue, used = [], []
    for _ in range(3):
        pending = list(learner.fleet._pending)
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=PATIENCE)
        assert len(ready) == 3 * 2
        before = {pid: cpu(pid) for pid, _ in alive().values()}
        time.sleep(1)
        assert all(cpu(pid) - seconds < 0.2 for pid, seconds in before.items())
        used.append(ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"])
        learner.learn()
        queue.append(learner.runner.extra["queue"])
    report(queue=queue, object_store_bytes=used)
    assert queue == [3 * 2 - 2] * 3
    assert 0 < max(used) < 1.5 * min(used)


def test_hung_actors(learner, monkeypatch):
    pids = {actor: pid for actor, (pid, _) in alive().items()}
    monkeypatch.setattr(learner.fleet, "_timeout", 5.0)
    try:
        os.kill(pids[0], signal.SIGSTOP)
        first = len(learner.bank.learnt)
        learner.learn(20)
        assert sum(actor == 0 for actor, _ in learner.bank.learnt[first:]) <= 3
        os.kill(pids[1], signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(distributed.ActorFailure, match="no rollout from actor 0, actor 1 in 5 s"):
            learner.learn(20)
        assert time.monotonic() - began < 20
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
    learner.learn(5)
    check(learner)


@once_and_ten_times
def test_killed_raylet(cluster, learner, kills):
    bank, rng = learner.bank, np.random.default_rng(kills)
    before = bank.restarts, bank.gaps
    figures = {"actors": [], "next_update": [], "back": []}

    def kill(node):
        time.sleep(rng.uniform(0, 2))
        there = {actor: pid for actor, (pid, place) in alive().items() if place == node.node_id}
        lives = {actor: bank.life(actor) for actor in there}
        raylet = node.all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()
        moment = time.monotonic()
        figures["actors"].append(len(there))
        figures["back"].append(wait_until(lambda: all(bank.life(actor) != life for actor, life in lives.items())))
        figures["next_update"].append(min(t for t in bank.times if t > moment) - moment)
        wait_until(lambda: not set(there.values()) & set(marked()), 30, "actors that outlived their raylet")

    for _ in range(kills):
        places = {place for _, place in alive().values()}
        node = rng.choice([node for node in cluster.worker_nodes if node.node_id in places])
        learner.learn_during(kill, node)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(**ACTORS_NODE)
        check(learner)
    restarts = bank.restarts - before[0]
    assert restarts == sum(figures["actors"])
    report(kills=kills, restarts=restarts, gaps=bank.gaps - before[1], **figures)
