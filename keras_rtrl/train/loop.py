"""The training loop."""

import collections
import contextlib
import functools
import os
import signal
import time

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from tf_agents.environments import py_environment
from tqdm import tqdm

from keras_rtrl._checks import number, whole_number
from keras_rtrl._errors import UsageError
from keras_rtrl.agents.base import RolloutAgent
from keras_rtrl.distributed.fleet import ActorFailure
from keras_rtrl.distributed.replicas import Streams
from keras_rtrl.environments import registry
from keras_rtrl.train import building, checkpoints, config, export, metrics
from keras_rtrl.train import optimizers as _optimizers  # noqa: F401  registers them with gin
from keras_rtrl.train.run_folder import open_run
from keras_rtrl.train.runners import make_actors, make_runner

Result = collections.namedtuple(
    "Result", ["frames", "updates", "games", "mean_return", "seconds", "signal", "done", "errors", "human_normalized"]
)


class Diverged(ArithmeticError):
    """A loss, a gradient or a weight that is not finite; training has stopped and the last good checkpoint stands."""


class ProcessLost(RuntimeError):
    """One of several learning processes has died or does not answer; the last checkpoint stands."""


@contextlib.contextmanager
def _others():
    """Says that another learning process is lost where TensorFlow says that it cannot be reached."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError) as error:
        if config.value("train.strategy", None) != "multi_worker_mirrored":
            raise
        raise ProcessLost("another process of train.strategy has died, or does not answer") from error


def _closing_run(train):
    """Releases the run's lock when `train` ends."""

    @functools.wraps(train)
    def wrapped(run, *args, **kwargs):
        with contextlib.closing(run):
            try:
                return train(run, *args, **kwargs)
            except OSError as error:
                told = error.__context__  # gin raises a copy that has lost the name of the file
                raise told if error.errno is None and isinstance(told, OSError) else error from None

    return wrapped


@_closing_run
@_others()
@gin.configurable("train", module="keras_rtrl", denylist=["run", "resume", "minutes", "facts"])
def train(
    run,
    resume=False,
    minutes=None,
    facts=None,
    frames=gin.REQUIRED,
    rollout=20,
    optimizer=gin.REQUIRED,
    learning_rate=6e-4,
    final_learning_rate=0.0,
    seed=0,
    log_updates=10,
    checkpoint_minutes=3.0,
    return_window=100,
    encoder_from=None,
    strategy=None,
):
    """Trains an agent as the gin configuration says and leaves all of a run's files in its folder.

    The learning rate goes linearly from `learning_rate` to `final_learning_rate` at the run's end. SIGINT and SIGTERM
    end the loop after the update under way, with a checkpoint; a second signal acts as usual.

    Args:
      run: RunFolder to write to.
      resume: whether to go on from its newest checkpoint.
      minutes: wall-clock limit of this call, None for none.
      facts: dict, what else run.json shall hold, None for nothing.
      frames: environment frames of the whole run (Atari: 4 an agent step).
      rollout: T, agent steps of a stream between two updates.
      optimizer: class of tf-keras optimiser, called with the schedule of the learning rate.
      learning_rate: at the start.
      final_learning_rate: at the end.
      seed: int, of the weights, the actions and the environment.
      log_updates: updates between two rows of metrics.csv; an in-graph task makes as many in one compiled call.
      checkpoint_minutes: minutes between two checkpoints.
      return_window: number of last games that mean_return is over.
      encoder_from: folder of a run whose encoder, as its newest checkpoint has it, a new run begins with; None for a
        fresh one. ActorCriticNetwork.train_encoder says whether it goes on learning.
      strategy: "mirrored" spreads the streams over this machine's GPUs (its CPUs, where several are configured),
        "multi_worker_mirrored" over the processes that TF_CONFIG describes, each of which runs this with the same
        settings on its part of the streams; the chief alone leaves files, and counts its own games only. Checkpoints
        must lie where all processes read them. None for one device.

    Returns:
      Result: frames, updates and games of the whole run, mean return of the last games (None before the first), seconds
      of training, the signal that ended it (None), whether all frames were played, the errors of predictions in the
      last row by name ({} where the agent does not predict), and the mean return between random play's and a human's (0
      and 1; None where their scores are not known).

    Raises:
      UsageError: settings that do not fit, before anything is written.
      Diverged: a loss that is not finite.
      ActorFailure: actors that sent nothing for longer than their time-out; a checkpoint was made first.
      ProcessLost: another learning process that has died, or that TensorFlow has not heard of for some seconds.
    """
    try:
        frames = whole_number("train.frames", frames)
        rollout = whole_number("train.rollout", rollout)
        log_updates = whole_number("train.log_updates", log_updates)
        return_window = whole_number("train.return_window", return_window)
        seed = whole_number("train.seed", seed, 0, 2**32 - 1)
        learning_rate = number("train.learning_rate", learning_rate, low=0)
        final_learning_rate = number("train.final_learning_rate", final_learning_rate, low=0)
        checkpoint_minutes = number("train.checkpoint_minutes", checkpoint_minutes, above=0)
    except ValueError as error:
        raise UsageError(str(error)) from error
    building.check_optimizer(optimizer)
    started = time.monotonic()
    strategy_name, strategy = strategy, building.strategy(strategy)
    tf_keras.utils.set_random_seed(seed)
    scope = strategy.scope if strategy else contextlib.nullcontext
    try:
        with scope():
            streams = Streams(building.num_envs())
    except ValueError as error:
        raise UsageError(str(error).replace("num_streams", "environment.num_envs")) from error
    apart = building.actors(streams.worker)
    _lock(run, resume, streams)
    run = run if streams.is_chief else run.scratch()
    building.check_memory(streams.worker, rollout, min(log_updates, frames))
    env = building.environment(seed, streams=1 if apart else streams.worker if strategy else None)
    simulator = isinstance(env, py_environment.PyEnvironment)
    game_seed = _game_seed(seed, streams, checkpoints.saved_updates(run) if resume else None)
    if simulator and game_seed != seed and not apart:  # its streams begin anew: other games, please
        env.close()
        env = building.environment(game_seed, streams=streams.worker if strategy else None)
    if strategy and not simulator:
        raise UsageError(f"train.strategy must be None for a task inside TensorFlow's graph, got {strategy_name!r}")
    frames_per_update = streams.count * rollout * getattr(env, "frames_per_step", 1)
    total_updates = -(-frames // frames_per_update)
    agent_config = building.agent_config()
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(
        learning_rate, float(total_updates) * agent_config.optimizer_steps, final_learning_rate
    )
    with scope():
        optimizer = building.optimizer(optimizer, schedule)
        network = building.network(env)
        if encoder_from is not None and not resume:
            _load_encoder(encoder_from, network)
        agent = building.agent(env, network, optimizer, agent_config, streams.count)
    if strategy and not isinstance(agent, RolloutAgent):
        raise UsageError(f"train.strategy must be None for a {type(agent).__name__}, got {strategy_name!r}")
    counters = checkpoints.Counters()
    with building.named("environment"):
        if apart:
            runner = make_actors(env, agent, rollout, apart, game_seed, same_actions=game_seed == seed)
        else:
            runner = make_runner(env, agent, rollout, min(log_updates, total_updates))
    with contextlib.closing(runner):
        facts = {**(facts or {}), **_memory(agent, runner, rollout)}
        saver = checkpoints.Checkpoints(run, counters, agent, runner.state)
        if resume:
            saver.restore()
            if total_updates < counters.updates:
                raise UsageError(f"train.frames must be at least {counters.frames}, what is done, got {frames}")
            if simulator:
                agent.reset_carry()
        os.makedirs(run.path, exist_ok=True)
        config.save(run.config)
        saver.save()
        run.write_record(
            **facts, status="running", seed=seed, total_frames=frames,
            frames=counters.frames, updates=counters.updates,
            recurrent_parameters=sum(variable.shape.num_elements() for variable in agent.network.core_variables),
        )  # fmt: skip
        normalized = functools.partial(registry.normalized_score, config.value("environment.name", ""))
        score_names = () if normalized(0.0) is None else ("human_normalized",)
        columns = (*metrics.COLUMNS, *score_names, *runner.error_names, *agent.loss_names, *runner.extra_names)
        log = metrics.Metrics(run, columns, counters.updates)
        earlier, last_saved, last_errors = counters.seconds, time.monotonic(), {}
        diverged = failure = None
        losses, errors, row_started = [], [], (time.monotonic(), counters.frames)
        with _signals() as received, _progress(frames, counters, streams.is_chief) as bar:
            while counters.updates < total_updates:
                late = minutes is not None and time.monotonic() - started > 60 * minutes
                if streams.any(received or late):
                    break
                to_row = log_updates - counters.updates % log_updates
                updates = min(runner.max_updates, to_row, total_updates - counters.updates)
                try:
                    new_losses, returns, new_errors = runner.run(updates, counters)
                except ActorFailure as error:
                    if streams.worker < streams.count:  # the other processes wait inside the update, and save nothing
                        raise
                    failure = error
                    break
                bad = np.flatnonzero(~np.isfinite(new_losses).all(axis=1))
                if bad.size:
                    diverged = _reason(agent.loss_names, new_losses[bad[0]], counters.updates + int(bad[0]) + 1)
                    break
                counters.updates += updates
                counters.frames += updates * frames_per_update
                counters.games += len(returns)
                counters.recent_returns = (counters.recent_returns + returns)[-return_window:]
                counters.seconds = earlier + time.monotonic() - started
                mean_return = _mean(counters.recent_returns)
                losses.extend(new_losses)
                errors.extend(new_errors)
                bar.update(updates * frames_per_update)
                score = ("mean_return", mean_return)
                if runner.error_names:
                    score = next(iter(_means(runner.error_names, errors).items()))
                bar.set_postfix({score[0]: "-" if score[1] is None else f"{score[1]:.4g}"}, refresh=False)
                if updates == to_row or counters.updates == total_updates:
                    now, last_errors = time.monotonic(), _means(runner.error_names, errors)
                    log.write(
                        frames=counters.frames,
                        updates=counters.updates,
                        games=None if runner.error_names else counters.games,
                        mean_return=mean_return,
                        seconds=counters.seconds,
                        frames_per_second=(counters.frames - row_started[1]) / (now - row_started[0]),
                        learning_rate=float(schedule(agent.optimizer.iterations)),
                        **{name: normalized(mean_return) for name in score_names},
                        **last_errors,
                        **_means(agent.loss_names, losses),
                        **runner.extra,
                    )
                    losses, errors, row_started = [], [], (now, counters.frames)
                if streams.any(time.monotonic() - last_saved > 60 * checkpoint_minutes):
                    log.sync()
                    try:
                        saver.save()
                    except ArithmeticError as error:
                        diverged = f"{error} after update {counters.updates}"
                        break
                    metrics.plot(run, _title(run))
                    last_saved = time.monotonic()
            if diverged is None:
                log.sync()
                try:
                    saver.save()
                except ArithmeticError as error:
                    diverged = f"{error} after update {counters.updates}"
            if diverged is not None:
                saver.restore()
            log.close()
            metrics.trim(run, columns, counters.updates)
            metrics.plot(run, _title(run))
            export.save(agent.network, run.policy, agent.reward_scaler)
            done = diverged is None and counters.updates >= total_updates
            status = "diverged" if diverged else "finished" if done else "stopped"
            run.write_record(status=status, frames=counters.frames, updates=counters.updates)
        if diverged:
            raise Diverged(f"{diverged}; the checkpoint of update {counters.updates} stands")
        if failure:
            raise failure
        mean_return = _mean(counters.recent_returns)
        return Result(
            counters.frames, counters.updates, counters.games, mean_return, counters.seconds,
            received[0] if received else None, done, last_errors, normalized(mean_return),
        )  # fmt: skip


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
    if streams.any(wrong is not None):
        raise wrong or UsageError(f"{run.path}: the first process of this run cannot begin, see there")


def _game_seed(seed, streams, updates):
    """The seed of a process' environment: `seed` for the first process of a new run, else one of its own.

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


def _memory(agent, runner, rollout):
    """Says how much memory the learner's carry takes, and what an agent stores of a rollout; facts for run.json."""
    variables = (*agent.carry, *runner.carry)
    facts = {"carry_bytes": sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)}
    print(f"the learner's carry: {facts['carry_bytes'] / 2**20:.2f} MiB", flush=True)
    if hasattr(agent, "store_bytes"):
        try:
            facts["store_bytes"] = agent.store_bytes(rollout)
        except ValueError as error:
            raise UsageError(f"agent: {error}") from error
        print(f"carries stored of each rollout: {facts['store_bytes'] / 2**20:.2f} MiB", flush=True)
    return facts


def _reason(names, losses, update):
    names = [f"{name} {value}" for name, value in zip(names, losses, strict=True) if not np.isfinite(value)]
    return f"{', '.join(names)} at update {update}"


def _means(names, rows):
    """The mean of each column of `rows` by name, None where there is no row."""
    means = np.mean(rows, axis=0).tolist() if rows else [None] * len(names)
    return dict(zip(names, means, strict=True))


def _mean(returns):
    return float(np.mean(returns)) if returns else None


def _title(run):
    return f"{run.read_record().get('preset') or 'training'}, {config.text('environment.name', '')}"


def _progress(frames, counters, shown):
    return tqdm(
        total=frames, initial=counters.frames, unit=" frames", unit_scale=True, smoothing=0.1, mininterval=0.5,
        disable=not shown,
    )  # fmt: skip


@contextlib.contextmanager
def _signals():
    """Yields a list that the first SIGINT or SIGTERM is appended to."""
    received, before = [], {}

    def note(number, _):
        received.append(number)
        restore()  # a second one acts as usual

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # signals can be handled in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
