"""Kills of actors and of their machines: training goes on, and no stream's traces meet another's.

An actor is killed once, at a random moment; in the slow tests ten actors are, and ten machines.
"""

import concurrent.futures
import os
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from faults import ACTORS_NODE, BATCH, BINDINGS, PATIENCE, PRESET, ROLLOUT, STREAMS, cpu, marked, report, wait_until

ray = pytest.importorskip("ray", reason="actors need Ray, which is not installed (the extra ray)")

import tf_keras  # noqa: E402
from ray._private import state  # noqa: E402

from keras_rtrl import distributed  # noqa: E402
from keras_rtrl.train import building, config, loop  # noqa: E402, F401  loop: its settings are configured
from keras_rtrl.train.runners import make_actors  # noqa: E402


class Bank(distributed.StreamBank):
    """Also keeps what was learnt from, and drops a rollout where told to."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
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
            patch.setattr(distributed, "StreamBank", lambda *a, **k: banks.append(Bank(*a, **k)) or banks[0])
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


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_killed_raylet(cluster, learner):
    kills = 10
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
