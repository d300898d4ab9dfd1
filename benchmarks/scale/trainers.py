"""What runs in a process of its own: a whole training run, a fleet that only plays, the learner alone."""

import functools
import time

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from tf_agents.specs import array_spec

from benchmarks.scale.processes import ROOT, Usage
from keras_rtrl import environments
from keras_rtrl.distributed import Fleet
from keras_rtrl.environments.halves import joined
from keras_rtrl.environments.vector import VectorEnvironment
from keras_rtrl.train import building, config, loop  # noqa: F401  loop: its settings are in the presets
from keras_rtrl.train.checkpoints import Counters
from keras_rtrl.train.runners import make_actors, make_runner

WAITING = str(ROOT / "benchmarks" / "scale" / "waiting.gin")
# Observations and number of actions where the simulator is not installed.
SHAPES = {"dmlab_r2ac": ((72, 96, 3), 9)}


class Specs(VectorEnvironment):
    """An environment's specs without its simulator: uint8 images and discrete actions."""

    def __init__(self, shape, actions):
        super().__init__(
            1,
            array_spec.BoundedArraySpec(shape, np.uint8, 0, 255, name="observation"),
            array_spec.BoundedArraySpec((), np.int64, 0, actions - 1, name="action"),
        )

    def _reset(self):
        raise NotImplementedError

    def _step(self, action):
        raise NotImplementedError


def load(preset, actors=0, streams=None, batch=None):
    """Loads a preset, "waiting" being that of this folder, and gives an environment of one stream, for its specs.

    `actors` of `streams` streams are configured, and updates of `batch`; 0 and None leave the preset as it is.
    """
    bindings = [f"actors.number = {actors}", f"actors.streams = {streams}"]
    if batch is not None:
        bindings.append(f"environment.num_envs = {batch}")
    config.load(WAITING if preset == "waiting" else config.find(preset), bindings)
    tf_keras.utils.set_random_seed(0)
    if preset in SHAPES:
        return environments.with_history(Specs(*SHAPES[preset]))
    return building.environment(0, streams=1)


def make_agent(env, streams):
    """The configured agent, of `streams` streams."""
    optimizer = config.value("train.optimizer", None)(learning_rate=1e-4)
    return building.agent(env, building.network(env), optimizer, building.agent_config(), streams)


def made_up_rollout(agent, streams, length):
    """A Trajectory of arrays [B, T + 1] without an episode's end; bytes are random, all else is zero."""
    generator = np.random.default_rng(0)

    def array(spec):
        shape = (streams, length + 1, *spec.shape)
        if spec.dtype == tf.uint8:
            return generator.integers(0, 256, shape, np.uint8)
        return np.zeros(shape, spec.dtype.as_numpy_dtype)

    rollout = tf.nest.map_structure(array, agent.collect_policy.trajectory_spec)
    ones = np.ones([streams, length + 1], np.int32)
    return rollout._replace(step_type=ones, next_step_type=ones, discount=ones.astype(np.float32))


class Trainer:
    """The training loop without logs and checkpoints; arguments as `load`."""

    def __init__(self, *setup):
        env = load(*setup)
        streams, rollout = config.value("environment.num_envs", 16), config.value("train.rollout", 20)
        actors = building.actors(streams)
        if actors:
            self._runner = make_actors(env, make_agent(env, streams), rollout, actors, 0, same_actions=True)
        else:
            env.close()
            env = building.environment(0)
            self._runner = make_runner(env, make_agent(env, streams), rollout, 1)
        self._steps = streams * rollout
        self._counters = Counters()

    def run(self, untimed, updates):
        """`untimed` updates, then `updates` that count: (agent steps a second, cores of its own, busy cores, extra)."""
        for _ in range(untimed):
            self._runner.run(1, self._counters)
        extra = []
        usage = Usage()
        for _ in range(updates):
            self._runner.run(1, self._counters)
            extra.append(self._runner.extra)
        usage.stop()
        means = {name: float(np.mean([row[name] for row in extra])) for name in extra[0]}
        return updates * self._steps / usage.seconds, usage.own, usage.busy, means

    def close(self):
        self._runner.close()


class Player:
    """Actors whose rollouts nobody learns from: what the acting alone allows; arguments as `load`."""

    def __init__(self, *setup):
        env = load(*setup)
        streams, rollout = config.value("environment.num_envs", 16), config.value("train.rollout", 20)
        settings = building.actors(streams)
        agent = make_agent(env, streams)
        env.close()
        self._count = streams // settings["streams"]
        self._steps = streams * rollout
        generator = agent.collect_policy.generator.state.numpy()
        self._fleet = Fleet(gin.config_str(), 0, generator, num_steps=rollout, **settings)
        self._fleet.publish([variable.numpy() for variable in agent.network.variables])
        self._fleet.start()

    def run(self, untimed, updates):
        """As Trainer's."""
        for _ in range(untimed):
            self._take()
        usage = Usage()
        for _ in range(updates):
            self._take()
        usage.stop()
        return updates * self._steps / usage.seconds, usage.own, usage.busy, {}

    def _take(self):
        deliveries, _ = self._fleet.take(self._count, lambda *_: True)
        self._fleet.request([delivery.actor for delivery in deliveries])

    def close(self):
        self._fleet.close()


class Learner:
    """Updates alone, on one made-up rollout; arguments as `load`."""

    def __init__(self, *setup):
        env = load(*setup)
        streams, rollout = config.value("environment.num_envs", 16), config.value("train.rollout", 20)
        agent = make_agent(env, streams)
        self._rollout = made_up_rollout(agent, streams, rollout)
        self._train = tf.function(agent.train, autograph=False)
        self._steps = streams * rollout

    def run(self, untimed, updates):
        """As Trainer's."""
        for _ in range(untimed):
            float(self._train(self._rollout).loss)
        usage = Usage()
        for _ in range(updates):
            float(self._train(self._rollout).loss)
        usage.stop()
        return updates * self._steps / usage.seconds, usage.own, usage.busy, {}


def sizes(presets):
    """Bytes of one stream's rollout and traces and of all weights, by preset: dict of dicts."""
    return {preset: _sizes(preset) for preset in presets}


def _sizes(preset):
    env = load(preset)
    batch, length = config.value("environment.num_envs", 16), config.value("train.rollout", 20)
    agent = make_agent(env, 2)
    spec = tf.nest.flatten(agent.collect_policy.trajectory_spec)
    bytes_of = [spec_.shape.num_elements() * spec_.dtype.size * (length + 1) for spec_ in spec]
    frames = sum(n for n, spec_ in zip(bytes_of, spec, strict=True) if spec_.dtype == tf.uint8)
    state = sum(spec_.shape.num_elements() * spec_.dtype.size for spec_ in tf.nest.flatten(agent.network.state_spec))
    carry = [variable.shape.num_elements() * variable.dtype.size // 2 for variable in agent.carry]
    return {
        "streams": batch,
        "steps": length,
        "frames": frames,
        "else": sum(bytes_of) - frames + state,
        "weights": sum(v.shape.num_elements() * v.dtype.size for v in agent.network.variables),
        "traces": sum(carry[1:]),
        "computed": preset in SHAPES,
    }


def learner(preset, batches, rounds):
    """Seconds of an update of B streams, alone and warm, for each B of `batches`: ([medians], [cores used])."""
    env = load(preset)
    length = config.value("train.rollout", 20)
    contestants = []
    for batch in batches:
        agent = make_agent(env, batch)
        rollout = made_up_rollout(agent, batch, length)
        train = tf.function(agent.train, autograph=False)
        contestants.append((train, rollout))
    seconds, cores = ([[] for _ in batches] for _ in range(2))
    for round_ in range(rounds + 1):  # the first is not counted: functions are traced
        for i, (train, rollout) in enumerate(contestants):
            start, used = time.perf_counter(), time.process_time()
            float(train(rollout).loss)
            taken = time.perf_counter() - start
            if round_:
                seconds[i].append(taken)
                cores[i].append((time.process_time() - used) / taken)
    return [float(np.median(s)) for s in seconds], [float(np.median(c)) for c in cores]


def joining(preset, batch, numbers, rounds):
    """Seconds to make tensors of `batch` streams from so many rollouts, for each of `numbers`."""
    agent = make_agent(load(preset), batch)
    seconds = []
    for parts in numbers:
        length = config.value("train.rollout", 20)
        rollouts = [made_up_rollout(agent, batch // parts, length) for _ in range(parts)]
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
