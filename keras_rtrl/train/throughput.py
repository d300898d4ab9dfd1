"""How fast a configured agent's parts are, each alone and all together."""

import collections
import time

import numpy as np
import tensorflow as tf
import tf_keras
from tf_agents.environments import tf_environment

from keras_rtrl._checks import flag, whole_number
from keras_rtrl._errors import UsageError
from keras_rtrl.drivers.rollout_driver import operation
from keras_rtrl.train import building, config
from keras_rtrl.train.runners import make_runner

WARM_UP = 3  # rounds that are not counted: functions are traced, caches filled

Throughput = collections.namedtuple("Throughput", ["environment", "policy", "learner", "end_to_end", "allowed"])
Throughput.__doc__ = """Agent steps a second, all streams together; medians over rounds.

environment: the simulator alone, random actions.
policy: inference alone, on one time step.
learner: updates alone, on one rollout.
end_to_end: training, as the loop does it.
allowed: by the three costs one after the other, 1 / (1 / environment + 1 / policy + 1 / learner).
"""


def measure(rounds):
    """Measures the configured environment and agent, in turn within each of `rounds` rounds of one rollout each.

    Args:
      rounds: int, counted rounds.

    Returns:
      Throughput.

    Raises:
      UsageError: settings that do not fit, an in-graph task.
    """
    try:
        length = whole_number("train.rollout_length", config.value("train.rollout_length", 20))
        threads = config.value("train.intra_op_threads", None)
        overlap = flag("train.overlap", config.value("train.overlap", False))
        building.limit_threads(None if threads is None else whole_number("train.intra_op_threads", threads))
    except ValueError as error:
        raise UsageError(str(error)) from error
    building.check_memory(building.num_envs(), length)
    tf_keras.utils.set_random_seed(0)
    env = building.environment(0)
    if isinstance(env, tf_environment.TFEnvironment):
        raise UsageError("bench env measures simulators; an in-graph task is collected and learned in one function")
    settings = building.agent_config()
    optimizer = building.optimizer(config.value("train.optimizer", None), 1e-4)
    agent = building.agent(env, building.network(env), optimizer, settings)
    runner = make_runner(env, agent, length, 1, building.network(env) if overlap else None)
    rollout = runner.collect()
    policy, generator = agent.collect_policy, np.random.default_rng(0)
    given = (env.current_time_step(), policy.get_initial_state(env.batch_size))
    arguments = [np.array(x) for x in tf.nest.flatten(given)]
    act = operation(lambda *x: policy.action(*tf.nest.pack_sequence_as(given, x)), arguments)
    train = tf.function(agent.train, autograph=False)
    spec = env.action_spec()
    actions = [_random_actions(spec, env.batch_size, generator) for _ in range(length)]

    def environment():
        for action in actions:
            env.step(action)

    def acting():
        for _ in range(length):
            act(arguments)[0].numpy()

    def learning():
        float(train(rollout).loss)

    def end_to_end():
        runner.run(1, None)

    parts = {"environment": environment, "policy": acting, "learner": learning, "end_to_end": end_to_end}
    medians = _medians(parts, rounds)
    runner.close()
    steps = env.batch_size * length
    alone = sum(medians[name] for name in ("environment", "policy", "learner"))
    return Throughput(**{name: steps / value for name, value in medians.items()}, allowed=steps / alone)


def _medians(parts, rounds):
    """Median seconds of each function in `parts`, by name; they are called in turn."""
    seconds = {name: [] for name in parts}
    for _ in range(WARM_UP + rounds):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values[WARM_UP:])) for name, values in seconds.items()}


def _random_actions(spec, size, generator):
    shape = (size, *spec.shape)
    if np.issubdtype(spec.dtype, np.integer):
        return generator.integers(spec.minimum, spec.maximum + 1, shape, spec.dtype)
    return generator.uniform(np.maximum(spec.minimum, -1.0), np.minimum(spec.maximum, 1.0), shape).astype(spec.dtype)
