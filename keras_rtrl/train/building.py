"""From a configuration to an environment, a network and an agent."""

import contextlib
import json
import os
import re

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from tf_agents.environments import py_environment, tf_environment
from tf_agents.specs import tensor_spec

from keras_rtrl import agents, environments
from keras_rtrl._checks import fits_memory, shown, whole_number
from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.agents.reward_scaler import RewardScaler
from keras_rtrl.environments import atari
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train import optimizers as _optimizers  # noqa: F401  registers them with gin
from keras_rtrl.train import settings
from keras_rtrl.train.config import value as _config_value
from keras_rtrl.train.options import ActorOptions, TrainingOptions

gin.constant("ATARI_57", atari.ATARI_57)

# name: (class of the agent, class of its settings)
AGENTS = {
    "r2ac": (agents.R2ACAgent, agents.R2ACConfig),
    "ppo": (agents.RTRLPPOAgent, agents.PPOConfig),
    "stream_ac": (agents.StreamACAgent, agents.StreamACConfig),
    "td_lambda": (agents.TDLambdaAgent, agents.TDLambdaConfig),
}


_SMALL = 4096, 10**5, 10**7  # a network's widths, a rollout's frames, a call's frames: any machine has memory for them


@contextlib.contextmanager
def named(configurable):
    """Turns an error of the library about the settings of `configurable` into a UsageError that names the setting.

    A wrong value can end in any exception of the library or of TensorFlow, some of them with a text that names none.
    """
    try:
        yield
    except (
        UsageError,
        tf.errors.UnavailableError,
        tf.errors.DeadlineExceededError,
    ):  # the last two: of other processes
        raise
    except Exception as error:
        text = one_line(error)
        if not isinstance(error, (ValueError, TypeError, ImportError, RuntimeError)):
            text = f"{type(error).__name__}: {text}"
        text = re.sub(r"^Exception encountered when calling .*?\)\. +", "", text).partition(" Call arguments received")[
            0
        ]
        inner = re.sub(r"^\w+: +", "", text)  # without the name of a layer
        name = re.match(r"\w*", inner)[0]
        if name in settings.parameters(configurable):
            raise UsageError(f"{configurable}.{inner}") from error
        options = _config_value(f"{configurable}.options", None)
        at = ".options" if isinstance(options, dict) and name in options else ""
        raise UsageError(f"{configurable}{at}: {text}") from error


@gin.configurable("environment", module="keras_rtrl", denylist=["seed", "streams", "evaluation"])
def environment(seed, streams=None, evaluation=False, name=gin.REQUIRED, num_envs=16, workers=None, options=None):
    """Makes the configured environment, its observations with last reward and last action.

    Args:
      seed: int.
      streams: number of streams instead of num_envs.
      evaluation: whole games, if the environment makes a difference (Atari: a lost life ends no episode).
      name: as for `keras_rtrl.environments.make`.
      num_envs: number of streams B in training.
      workers: number of processes of the simulator, as for `make`; fewer if `streams` are fewer.
      options: dict of further arguments of `make`.

    Raises:
      UsageError: a name or an option that `make` does not know, or a simulator that does not run here.
    """
    if options is not None and not isinstance(options, dict):
        raise UsageError(f"environment.options must be a dict, got {shown(options)}")
    options = dict(options or {})
    for option in options:
        if not isinstance(option, str) or option in ("name", "num_envs", "seed", "workers"):
            raise UsageError(f"environment.options must hold options of the environment alone, got {shown(option)}")
    if evaluation and str(name).startswith("ALE/"):
        options["training"] = False
    if streams and isinstance(workers, int) and not isinstance(workers, bool):
        workers = min(workers, streams)
    with named("environment"):
        env = environments.make(name, num_envs=streams or num_envs, seed=seed, workers=workers, **options)
        return environments.with_history(env)


def strategy(name):
    """The tf.distribute strategy that train.strategy names; None for None. To be made before anything is computed.

    Raises:
      UsageError: another name, or processes to be joined and no TF_CONFIG that says which.
    """
    if name is None:
        return None
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker_mirrored":
        if not os.environ.get("TF_CONFIG"):
            raise UsageError(
                "train.strategy 'multi_worker_mirrored' joins processes that the environment variable TF_CONFIG "
                "describes, in each of them; it is not set"
            )
        try:
            _check_cluster(json.loads(os.environ["TF_CONFIG"]))
            print("waiting for the learning processes of TF_CONFIG", flush=True)
            return tf.distribute.MultiWorkerMirroredStrategy()
        except Exception as error:  # the type depends on the fault
            raise UsageError(f"TF_CONFIG {shown(os.environ['TF_CONFIG'])}: {one_line(error)}") from error
    raise UsageError(f"train.strategy must be None, 'mirrored' or 'multi_worker_mirrored', got {shown(name)}")


def _check_cluster(described):
    """Checks what TensorFlow itself finds out late, or not at all. Raises ValueError."""
    if not isinstance(described, dict) or not {"cluster", "task"} <= set(described):
        raise ValueError("it must be a JSON object with cluster and task")
    cluster, task = described["cluster"], described["task"]
    if not isinstance(cluster, dict) or not all(isinstance(addresses, list) for addresses in cluster.values()):
        raise ValueError("cluster must be a JSON object with lists of addresses")
    for address in (address for addresses in cluster.values() for address in addresses):
        port = str(address).rpartition(":")[2]
        if not (port.isdecimal() and 0 < int(port[:9]) < 2**16):
            raise ValueError(f"an address of cluster must be host:port, the port from 1 to 65535, got {shown(address)}")
    if not isinstance(task, dict) or not cluster.get(task.get("type")):
        raise ValueError(f"task must be a JSON object with type, one that cluster has, and index, got {shown(task)}")
    whole_number("task's index", task.get("index"), 0, len(cluster[task["type"]]) - 1)


def check_optimizer(value):
    """Returns `value`. Raises UsageError unless it is a class of optimiser."""
    if not isinstance(value, type) or not issubclass(value, tf_keras.optimizers.Optimizer):
        known = ", ".join(f"@{name}" for name in settings.OPTIMIZERS)
        raise UsageError(f"train.optimizer must be a class of optimiser, of {known}, got {shown(value)}")
    return value


def optimizer(value, schedule):
    """Makes the configured optimiser, `value` being its class. Raises UsageError for another value or its settings."""
    name = check_optimizer(value).__name__
    with named(name if name in settings.OPTIMIZERS else "train"):
        return value(learning_rate=schedule)


def check_memory(streams, rollout_length, log_updates=1):
    """Refuses what would not fit into this machine's memory, before any of it is made.

    An estimate from below: of a rollout the frames as they are collected and as they are learnt from; of a training
    step the carry before and after it, and those that PPO keeps of a rollout; the weights, their gradients and an
    optimiser's two averages; of an in-graph task what one compiled call of `log_updates` updates records.

    Args:
      streams: B.
      rollout_length: T; 0 for playing alone.
      log_updates: updates between two rows.

    Raises:
      UsageError: names the settings that take the most.
    """
    names = ("units", "recurrent_parameters", "encoder_units", "head_units")
    widths = tf.nest.flatten([_config_value(f"ActorCriticNetwork.{name}", None) for name in names])
    largest = max((width for width in widths if isinstance(width, (int, float))), default=0)
    sizes = (largest, streams * (rollout_length + 1), streams * rollout_length * log_updates)
    if all(size <= small for size, small in zip(sizes, _SMALL, strict=True)):
        return
    text = ", ".join(
        f"ActorCriticNetwork.{name} = {shown(_config_value(f'ActorCriticNetwork.{name}', None))}"
        for name in names
        if _config_value(f"ActorCriticNetwork.{name}", None)
    )
    parts = {text: 16 * largest}
    env = environment(0, streams=1)
    if isinstance(env, py_environment.PyEnvironment):
        env.close()
    given = f"environment.num_envs = {streams}"
    frame = sum(_bytes(spec) for spec in tf.nest.flatten((env.time_step_spec(), env.action_spec())))
    parts[f"{given}, train.rollout_length = {rollout_length}"] = 2 * frame * streams * (rollout_length + 1)
    if isinstance(env, tf_environment.TFEnvironment):
        parts[f"{given}, train.rollout_length = {rollout_length}, train.log_updates = {log_updates}"] = (
            2 * 5 * streams * rollout_length * log_updates
        )
    with contextlib.suppress(Exception), tf.Graph().as_default():  # allocates nothing; errors come again later
        made = _network(env)
        kept = 2 + rollout_length // max(getattr(agent_config(), "chunk", rollout_length + 1), 1)
        parts[text] = 4 * sum(_bytes(variable) for variable in made.variables)
        parts[f"{given}, {text}"] = (
            kept * streams * sum(_bytes(part) for part in tf.nest.flatten(made.get_initial_carry(1)))
        )
    most = max(parts, key=parts.get)
    try:
        fits_memory(most, sum(parts.values()))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _bytes(spec):
    return int(np.prod([int(size) for size in spec.shape], dtype=object)) * tf.as_dtype(spec.dtype).size


def num_envs():
    """The configured number of streams B of an update. Raises UsageError if it is not valid."""
    try:
        return whole_number("environment.num_envs", _config_value("environment.num_envs", 16))
    except ValueError as error:
        raise UsageError(str(error)) from error


def network(env):
    """Makes the configured network for an environment, its variables too. Raises UsageError for arguments unfit."""
    with named("ActorCriticNetwork"):
        return _network(env)


def _network(env):
    network = ActorCriticNetwork(
        tensor_spec.from_spec(env.time_step_spec()).observation, tensor_spec.from_spec(env.action_spec())
    )
    network.create_variables()
    return network


def agent_config():
    """The settings of the configured agent. Raises UsageError for settings out of range."""
    made = _agent_classes()[1]
    with named(made.__name__):
        return made()


def reward_scaler():
    """A RewardScaler like that of the configured agent, for one stream; None if the agent has none."""
    made = agent_config()
    return RewardScaler(made.gamma, 1) if getattr(made, "normalize_rewards", False) else None


def actors(batch=None):
    """The settings of the configured actors on Ray; None if there are none.

    Args:
      batch: number of streams of an update, which decides `streams` of the actors; None if they do not learn.

    Returns:
      ActorOptions or None.

    Raises:
      UsageError: settings out of range, or that do not fit the environment.
    """
    try:
        made = ActorOptions()
        if not made.num_actors:
            return None
        return made if batch is None else made.for_batch(batch)
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def training():
    """The configured TrainingOptions. Raises UsageError for one out of range."""
    try:
        return TrainingOptions()
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def limit_threads(intra_op_threads):
    """Sets the threads of one of TensorFlow's operations; None leaves them. Has no effect once TensorFlow computes."""
    if intra_op_threads is not None:
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)


def agent(env, network, optimizer, config, num_streams=None):
    """Makes the configured agent, of the environment's streams or of `num_streams`.

    Raises UsageError if environment, network and settings do not fit.
    """
    with named(_agent_classes()[1].__name__):
        return _agent_classes()[0](
            tensor_spec.from_spec(env.time_step_spec()),
            tensor_spec.from_spec(env.action_spec()),
            network,
            optimizer,
            num_streams=num_streams or env.batch_size,
            config=config,
            train_step_counter=tf.Variable(0, dtype=tf.int64, trainable=False, name="updates"),
        )


@gin.configurable("agent", module="keras_rtrl")
def _agent_classes(name="r2ac"):
    if not isinstance(name, str) or name not in AGENTS:
        raise UsageError(f"agent.name must be one of {', '.join(AGENTS)}, got {shown(name)}")
    return AGENTS[name]
