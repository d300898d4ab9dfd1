"""The programs that run in separate processes: a whole training run, a fleet that only plays, the learner alone."""

import functools
import os
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from tf_agents.specs import array_spec

from keras_rtrl import environments
from keras_rtrl.distributed import Fleet
from keras_rtrl.environments.halves import joined
from keras_rtrl.environments.vector import VectorEnvironment
from keras_rtrl.train import actors, building, config
from keras_rtrl.train.checkpoints import Counters
from keras_rtrl.train.runners import make_actors, make_runner

WAITING = str(Path(__file__).with_name("waiting.gin"))
# Observations and number of actions if the simulator is not installed.
SHAPES = {"dmlab_r2ac": ((72, 96, 3), 9)}


class Specs(VectorEnvironment):
    """An environment's specs without its simulator: uint8 images and discrete actions."""

    def __init__(self, shape, actions):
        observation = array_spec.BoundedArraySpec(shape, np.uint8, 0, 255, name="observation")
        super().__init__(1, observation, array_spec.BoundedArraySpec((), np.int64, 0, actions - 1, name="action"))

    def _reset(self):
        raise NotImplementedError

    _step = _reset


def load(preset, actors=0, streams=None, batch=None):
    """Loads a preset, "waiting" being that of this folder: (environment of one stream, for its specs, B, T).

    `actors` of `streams` streams are configured, and updates of `batch`; 0 and None leave the preset as it is.
    """
    bindings = [f"actors.num_actors = {actors}", f"actors.num_streams = {streams}"]
    if batch is not None:
        bindings.append(f"environment.num_envs = {batch}")
    config.load(WAITING if preset == "waiting" else config.find(preset), bindings)
    tf_keras.utils.set_random_seed(0)
    specs = preset in SHAPES
    env = environments.with_history(Specs(*SHAPES[preset])) if specs else building.environment(0, streams=1)
    return env, config.value("environment.num_envs", 16), config.value("train.rollout_length", 20)


def make_agent(env, streams):
    """The configured agent, of `streams` streams."""
    optimizer = config.value("train.optimizer", None)(learning_rate=1e-4)
    return building.agent(env, building.network(env), optimizer, building.agent_config(), streams)


def made_up_rollout(agent, streams):
    """A Trajectory of arrays [B, T + 1] without an episode's end; bytes are random, all else is zero."""
    generator, length = np.random.default_rng(0), config.value("train.rollout_length", 20)

    def array(spec):
        shape = (streams, length + 1, *spec.shape)
        if spec.dtype == tf.uint8:
            return generator.integers(0, 256, shape, np.uint8)
        return np.zeros(shape, spec.dtype.as_numpy_dtype)

    rollout = tf.nest.map_structure(array, agent.collect_policy.trajectory_spec)
    ones = np.ones([streams, length + 1], np.int32)
    return rollout._replace(step_type=ones, next_step_type=ones, discount=ones.astype(np.float32))


class _Timed:
    """What is measured, update by update."""

    def run(self, untimed, updates):
        """`untimed` updates, then `updates` that count: (agent steps a second, cores it used, busy cores, extra)."""
        for _ in range(untimed):
            self._update()
        start, extra = _now(), []
        for _ in range(updates):
            extra.append(self._update() or {})
        seconds, own, busy = (after - before for after, before in zip(_now(), start, strict=True))
        means = {name: float(np.mean([row[name] for row in extra])) for name in extra[0]}
        return updates * self._steps / seconds, own / seconds, busy / seconds, means


class Trainer(_Timed):
    """The training loop without logs and checkpoints; arguments as `load`."""

    def __init__(self, *setup):
        env, streams, rollout = load(*setup)
        self._steps, self._counters = streams * rollout, Counters()
        options = building.actors(streams)
        if options:
            self._runner = make_actors(env, make_agent(env, streams), rollout, options, 0, same_actions=True)
        else:
            env.close()
            env = building.environment(0)
            self._runner = make_runner(env, make_agent(env, streams), rollout, 1)

    def _update(self):
        self._runner.run(1, self._counters)
        return self._runner.extra

    def close(self):
        self._runner.close()


class Player(_Timed):
    """Actors whose rollouts nobody learns from: what the acting alone allows; arguments as `load`."""

    def __init__(self, *setup):
        env, streams, rollout = load(*setup)
        options = building.actors(streams)
        agent = make_agent(env, streams)
        env.close()
        self._count = streams // options.num_streams
        self._steps = streams * rollout
        generator = agent.collect_policy.generator.state.numpy()
        sizes = (options.num_actors, options.num_streams, rollout)
        arguments = (*actors.common_arguments(options), *sizes, 0, generator)
        fleet = {"num_actors": options.num_actors, "queue": options.queue, **options.for_ray()}
        self._fleet = Fleet(actors.RolloutActor, arguments, **fleet)
        self._fleet.publish([variable.numpy() for variable in agent.network.variables])
        self._fleet.start()

    def _update(self):
        deliveries, _ = self._fleet.take(self._count, lambda *_: True)
        self._fleet.request([delivery.actor for delivery in deliveries])

    def close(self):
        self._fleet.close()


class Learner(_Timed):
    """Updates alone, on one made-up rollout; arguments as `load`."""

    def __init__(self, *setup):
        env, streams, rollout = load(*setup)
        agent = make_agent(env, streams)
        self._rollout, self._steps = made_up_rollout(agent, streams), streams * rollout
        self._train = tf.function(agent.train, autograph=False)

    def _update(self):
        float(self._train(self._rollout).loss)


def _now():
    """Seconds: of the clock, of cores used by this process and those below it, and by the whole machine."""
    tick = os.sysconf("SC_CLK_TCK")
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = int(fields[11]) + int(fields[12])

    def is_below(pid):
        while pid and pid != os.getpid():
            pid = parents.get(pid)
        return bool(pid)

    own = sum(ticks for pid, ticks in used.items() if is_below(pid))
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return time.perf_counter(), own / tick, (user + nice + system + irq + softirq) / tick


def sizes(presets):
    """Bytes of one stream's rollout and traces and of all weights, by preset: dict of dicts."""
    return {preset: _sizes(preset) for preset in presets}


def _sizes(preset):
    env, batch, length = load(preset)
    agent = make_agent(env, 2)

    def size(specs):
        return sum(spec.shape.num_elements() * spec.dtype.size for spec in tf.nest.flatten(specs))

    specs = tf.nest.flatten(agent.collect_policy.trajectory_spec)
    frames = size([spec for spec in specs if spec.dtype == tf.uint8]) * (length + 1)
    return {
        "streams": batch,
        "steps": length,
        "frames": frames,
        "else": size(specs) * (length + 1) - frames + size(agent.network.state_spec),
        "weights": size(agent.network.variables),
        "traces": size(tf.nest.flatten(agent.carry)[1:]) // 2,
        "computed": preset in SHAPES,
    }


def learner(preset, batches, rounds):
    """Seconds of an update of B streams, alone and warm, for each B of `batches`: ([medians], [cores used])."""
    env, _, _ = load(preset)
    contestants = []
    for batch in batches:
        agent = make_agent(env, batch)
        contestants.append((tf.function(agent.train, autograph=False), made_up_rollout(agent, batch), [], []))
    for train, rollout, seconds, cores in contestants * (rounds + 1):
        start, used = time.perf_counter(), time.process_time()
        float(train(rollout).loss)
        seconds.append(time.perf_counter() - start)
        cores.append((time.process_time() - used) / seconds[-1])
    # The first is not counted: functions are traced.
    return tuple([float(np.median(row[i][1:])) for row in contestants] for i in (2, 3))


def joining(preset, batch, numbers, rounds):
    """Seconds to make tensors of `batch` streams from so many rollouts, for each of `numbers`."""
    agent = make_agent(load(preset)[0], batch)
    seconds = []
    for parts in numbers:
        rollouts = [made_up_rollout(agent, batch // parts) for _ in range(parts)]
        join = functools.partial(lambda rollouts: tf.nest.map_structure(tf.constant, joined(rollouts)), rollouts)
        seconds.append(median_seconds(join, rounds))
    return seconds


def median_seconds(function, rounds):
    """The median of the seconds that a call takes, the first not counted."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
