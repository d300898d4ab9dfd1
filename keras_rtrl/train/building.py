"""From a configuration to an environment, a network and an agent."""

import os

import gin
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl import agents, environments
from keras_rtrl._checks import whole_number
from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.agents.reward_scaler import RewardScaler
from keras_rtrl.distributed import fleet
from keras_rtrl.environments import atari
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train.config import value as _config_value

gin.constant("ATARI_57", atari.ATARI_57)

# name: (class of the agent, class of its settings)
AGENTS = {
    "r2ac": (agents.R2ACAgent, agents.R2ACConfig),
    "ppo": (agents.RTRLPPOAgent, agents.PPOConfig),
    "stream_ac": (agents.StreamACAgent, agents.StreamACConfig),
    "td_lambda": (agents.TDLambdaAgent, agents.TDLambdaConfig),
}


@gin.configurable("environment", module="keras_rtrl", denylist=["seed", "streams", "evaluation"])
def environment(seed, streams=None, evaluation=False, name=gin.REQUIRED, num_envs=16, workers=None, options=None):
    """Makes the configured environment, its observations with last reward and last action.

    Args:
      seed: int.
      streams: number of streams instead of num_envs.
      evaluation: whole games, where the environment knows a difference (Atari: a lost life ends no episode).
      name: as `keras_rtrl.environments.make`.
      num_envs: number of streams B in training.
      workers: number of processes of the simulator, as `make`; fewer where `streams` are fewer.
      options: dict of further arguments of `make`.

    Raises:
      UsageError: a name or an option that `make` does not know, or a simulator that does not run here.
    """
    if options is not None and not isinstance(options, dict):
        raise UsageError(f"environment.options must be a dict, got {options!r}")
    options = dict(options or {})
    for option in options:
        if not isinstance(option, str) or option in ("name", "num_envs", "seed", "workers"):
            raise UsageError(f"environment.options must hold options of the environment alone, got {option!r}")
    if evaluation and str(name).startswith("ALE/"):
        options["training"] = False
    if streams and isinstance(workers, int):
        workers = min(workers, streams)
    try:
        env = environments.make(name, num_envs=streams or num_envs, seed=seed, workers=workers, **options)
        return environments.with_history(env)
    except (ValueError, ImportError, RuntimeError) as error:
        raise UsageError(one_line(error)) from error


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
        print("waiting for the learning processes of TF_CONFIG", flush=True)
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except ValueError as error:
            raise UsageError(f"TF_CONFIG {os.environ['TF_CONFIG']!r}: {one_line(error)}") from error
    raise UsageError(f"train.strategy must be None, 'mirrored' or 'multi_worker_mirrored', got {name!r}")


def num_envs():
    """The configured number of streams B of an update. Raises UsageError where it is none."""
    try:
        return whole_number("environment.num_envs", _config_value("environment.num_envs", 16))
    except ValueError as error:
        raise UsageError(str(error)) from error


def network(env):
    """Makes the configured network for an environment, its variables too. Raises UsageError for arguments unfit."""
    try:
        network = ActorCriticNetwork(
            tensor_spec.from_spec(env.time_step_spec()).observation, tensor_spec.from_spec(env.action_spec())
        )
        network.create_variables()
    except (ValueError, TypeError) as error:
        raise UsageError(f"network: {one_line(error)}") from error
    return network


def agent_config():
    """The settings of the configured agent. Raises UsageError for settings out of range."""
    try:
        return _agent_classes()[1]()
    except (ValueError, TypeError) as error:
        raise UsageError(f"agent: {one_line(error)}") from error


def reward_scaler():
    """A RewardScaler as the configured agent has it, for one stream; None where it has none."""
    settings = agent_config()
    return RewardScaler(settings.gamma, 1) if getattr(settings, "scale_reward", False) else None


def actors(batch=None):
    """The settings of the configured actors on Ray; None where there are none.

    Args:
      batch: number of streams of an update, by which their `streams` are decided; None where they do not learn.

    Returns:
      dict, as `fleet.settings` gives it, or None.

    Raises:
      UsageError: settings out of range, or that do not fit the environment.
    """
    try:
        settings = fleet.settings()
        if not settings["number"]:
            return None
        if batch is not None:
            settings["streams"] = fleet.streams_of_each(batch, settings["number"], settings["streams"])
    except ValueError as error:
        raise UsageError(str(error)) from error
    return settings


def agent(env, network, optimizer, config, num_streams=None):
    """Makes the configured agent, of the environment's streams or of `num_streams`.

    Raises UsageError where environment, network and settings do not fit.
    """
    try:
        return _agent_classes()[0](
            tensor_spec.from_spec(env.time_step_spec()),
            tensor_spec.from_spec(env.action_spec()),
            network,
            optimizer,
            num_streams=num_streams or env.batch_size,
            config=config,
            train_step_counter=tf.Variable(0, dtype=tf.int64, trainable=False, name="updates"),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"agent: {one_line(error)}") from error


@gin.configurable("agent", module="keras_rtrl")
def _agent_classes(name="r2ac"):
    if not isinstance(name, str) or name not in AGENTS:
        raise UsageError(f"agent.name must be one of {', '.join(AGENTS)}, got {name!r}")
    return AGENTS[name]
