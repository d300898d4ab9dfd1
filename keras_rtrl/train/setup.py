"""From settings to all that a training run is made of."""

import collections
import contextlib

import numpy as np
import tf_keras
from tf_agents.environments import py_environment

from keras_rtrl._errors import UsageError
from keras_rtrl.agents.base import RolloutAgent
from keras_rtrl.distributed.replicas import Streams
from keras_rtrl.environments import registry
from keras_rtrl.train import building, checkpoints, config, metrics
from keras_rtrl.train.run_folder import open_run
from keras_rtrl.train.runners import make_actors, make_runner

Parts = collections.namedtuple(
    "Parts", ["run", "streams", "schedule", "agent", "runner", "frames_per_update", "updates"]
)
Parts.__doc__ = """The parts of a training run.

run: RunFolder that this process writes to; in processes after the first a temporary one.
streams: Streams, which says how they are spread over devices and processes.
schedule: schedule of the learning rate.
agent: the agent, with its network and optimiser.
runner: the runner, which collects rollouts and lets the agent learn.
frames_per_update: environment frames of an update.
updates: number of updates of the whole run.
"""
Made = collections.namedtuple("Made", ["agent", "schedule", "frames_per_update", "updates"])
Made.__doc__ = "An agent, the schedule of its learning rate, and the sizes of its run, as of Parts."


def make(run, options, resume):
    """Makes the parts of a run, and locks its folder.

    Args:
      run: RunFolder.
      options: TrainingOptions.
      resume: whether the run was begun before.

    Returns:
      Parts. The runner must be closed.

    Raises:
      UsageError: settings that do not fit, before anything is written.
    """
    building.check_optimizer(options.optimizer)
    building.limit_threads(options.intra_op_threads)
    strategy = building.strategy(options.strategy)
    scope = strategy.scope if strategy else contextlib.nullcontext
    tf_keras.utils.set_random_seed(options.seed)
    streams = _streams(scope)
    actors = building.actors(streams.worker)
    _lock(run, resume, streams)
    building.check_memory(streams.worker, options.rollout_length, min(options.log_updates, options.frames))
    game_seed = _game_seed(options.seed, streams, checkpoints.saved_updates(run) if resume else None)
    env = _environment(game_seed, options, streams, strategy, actors)
    with scope():
        made = make_agent(env, options, streams.count, None if resume else options.encoder_from)
    agent, schedule, frames_per_update, updates = made
    if strategy and not isinstance(agent, RolloutAgent):
        raise UsageError(f"train.strategy must be None for a {type(agent).__name__}, got {options.strategy!r}")
    if options.overlap and (strategy or actors):
        other = "actors, which act meanwhile" if actors else f"train.strategy {options.strategy!r}"
        raise UsageError(f"train.overlap must be False with {other}, got True")
    with building.named("environment"):
        if actors:
            same_actions = game_seed == options.seed
            runner = make_actors(env, agent, options.rollout_length, actors, game_seed, same_actions)
        else:
            acting = building.network(env) if options.overlap else None
            runner = make_runner(env, agent, options.rollout_length, min(options.log_updates, updates), acting)
    run = run if streams.is_chief else run.scratch()
    return Parts(run, streams, schedule, agent, runner, frames_per_update, updates)


def make_agent(env, options, streams, encoder_from=None):
    """Makes the configured agent, in the strategy's scope.

    Args:
      env: environment, also of other streams.
      options: TrainingOptions.
      streams: number of streams of an update.
      encoder_from: folder of the run whose encoder the network begins with, None for none.

    Returns:
      Made.

    Raises:
      UsageError: settings that do not fit.
    """
    frames_per_update = streams * options.rollout_length * getattr(env, "frames_per_step", 1)
    updates = -(-options.frames // frames_per_update)
    agent_config = building.agent_config()
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(
        options.learning_rate, float(updates) * agent_config.optimizer_steps, options.final_learning_rate
    )
    optimizer = building.optimizer(options.optimizer, schedule)
    network = building.network(env)
    if encoder_from is not None:
        _load_encoder(encoder_from, network)
    agent = building.agent(env, network, optimizer, agent_config, streams)
    return Made(agent, schedule, frames_per_update, updates)


def _streams(scope):
    try:
        with scope():
            return Streams(building.num_envs())
    except ValueError as error:
        raise UsageError(str(error).replace("num_streams", "environment.num_envs")) from error


def _environment(game_seed, options, streams, strategy, actors):
    """The environment of this process; one stream, which tells the specs, if actors play."""
    given = config.value("environment.options", None)
    engine = given.get("engine", "auto") if isinstance(given, dict) else "auto"
    with building.named("environment"):
        in_graph = registry.in_graph(config.text("environment.name", ""), engine)
    # a resumed task in the graph goes on from its checkpoint, a simulator begins other games
    seed = options.seed if in_graph or actors else game_seed
    env = building.environment(seed, streams=1 if actors else streams.worker if strategy else None)
    if strategy and not isinstance(env, py_environment.PyEnvironment):
        what = registry.described_in_graph(config.text("environment.name", ""))
        raise UsageError(f"train.strategy must be None for {what}, got {options.strategy!r}")
    return env


def _lock(run, resume, streams):
    """Locks a run in the first of its processes; what all of them then find wrong ends each.

    Raises UsageError: another process holds the lock, or the run cannot be gone on with, or begun.
    """
    wrong = None
    if streams.is_chief:
        try:
            run.lock()
            if resume:  # as it is now: the process that held the lock may have gone on with it meanwhile
                open_run(run.path)
                checkpoints.newest(run)
                metrics.read(run.metrics)
            elif run.holds_run():
                raise UsageError(f"{run.path}: holds a run already; go on with it by --resume, or choose another --out")
        except UsageError as error:
            wrong = error
    if streams.any_process(wrong is not None):
        raise wrong or UsageError(f"{run.path}: the first process of this run cannot begin, see there")


def _game_seed(seed, streams, updates):
    """The seed of a process' environment: `seed` for the first process of a new run, else one made from it.

    `updates` are those before the checkpoint that is resumed, None for a new run.
    """
    words = [seed] if updates is None else [seed, updates]
    words += [streams.worker_index] if streams.worker_index else []
    return seed if words == [seed] else int(np.random.SeedSequence(words).generate_state(1)[0])


def _load_encoder(path, network):
    if not isinstance(path, str):
        raise UsageError(f"train.encoder_from must be the folder of a run, got {path!r}")
    try:
        checkpoints.restore_encoder(open_run(path), network)
    except UsageError as error:
        raise UsageError(f"train.encoder_from: {error}") from error
