"""The training loop."""

import collections
import contextlib
import os
import signal
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_rtrl._errors import UsageError
from keras_rtrl.distributed import ActorFailure
from keras_rtrl.environments import registry
from keras_rtrl.train import checkpoints, config, export, metrics, setup

Result = collections.namedtuple(
    "Result",
    [
        "frames", "updates", "games", "mean_return", "seconds", "signal", "done", "errors", "human_normalized",
        "random_return",
    ],
)  # fmt: skip


class Diverged(ArithmeticError):
    """A loss, a gradient or a weight that is not finite; training has stopped and the last good checkpoint stands."""


class ProcessLost(RuntimeError):
    """One of several learning processes has died or does not answer; the last checkpoint stands."""


def train(run, options, resume=False, minutes=None, facts=None):
    """Trains an agent as the gin configuration says and leaves all of a run's files in its folder.

    SIGINT and SIGTERM end the loop after the current update, with a checkpoint; a second signal acts as usual.

    Args:
      run: RunFolder to write to.
      options: TrainingOptions.
      resume: whether to go on from its newest checkpoint.
      minutes: wall-clock limit of this call, None for none.
      facts: dict of further entries of run.json, None for none.

    Returns:
      Result: frames, updates and games of the whole run, mean return of the last games (None before the first), seconds
      of training, the signal that ended it (None), whether all frames were played, the errors of predictions in the
      last row by name ({} if the agent does not predict), the human-normalised mean return, and the mean return of
      random play (both None if the scores are not known).

    Raises:
      UsageError: settings that do not fit, before anything is written.
      Diverged: a loss that is not finite.
      ActorFailure: actors that sent nothing for longer than their time-out; a checkpoint was made first.
      ProcessLost: another learning process that has died, or that TensorFlow has not heard of for some seconds.
    """
    started = time.monotonic(), metrics.processor_seconds()
    with contextlib.closing(run), _other_processes(options.strategy):
        parts = setup.make(run, options, resume)
        with contextlib.closing(parts.runner):
            loop = Loop(parts, options, started, None if minutes is None else started[0] + 60 * minutes)
            loop.begin(resume, facts or {})
            loop.run()
            return loop.end()


@contextlib.contextmanager
def _other_processes(strategy):
    """Says that another learning process is lost if TensorFlow says that it cannot be reached."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError) as error:
        if strategy != "multi_worker_mirrored":
            raise
        raise ProcessLost("another process of train.strategy has died, or does not answer") from error


class Loop:
    """Updates, with rows of metrics and checkpoints, until the run's end, a time limit, a signal or a failure.

    Args:
      parts: setup.Parts.
      options: TrainingOptions.
      started: (time.monotonic(), metrics.processor_seconds()) at which this call's seconds begin.
      deadline: time.monotonic() after which no update begins, None for no limit.
    """

    def __init__(self, parts, options, started, deadline):
        self._run, self._streams, self._agent, self._runner = parts.run, parts.streams, parts.agent, parts.runner
        self._schedule, self._frames_per_update, self._updates = parts.schedule, parts.frames_per_update, parts.updates
        self._options, self._started, self._deadline = options, started, deadline
        self._counters = checkpoints.Counters()
        self._saver = checkpoints.Checkpoints(parts.run, self._counters, parts.agent, parts.runner.state)
        self._environment = config.text("environment.name", "")
        self._score_names = () if self._normalized(0.0) is None else ("human_normalized",)
        self._columns = (
            *metrics.COLUMNS, *self._score_names, *parts.runner.error_names, *parts.agent.loss_names,
            *parts.runner.extra_names,
        )  # fmt: skip
        self._losses, self._errors, self._last_errors = [], [], {}
        self._diverged = self._failure = self._signal = None

    def begin(self, resume, facts):
        """Goes back to the newest checkpoint if `resume`, and writes what a run begins with."""
        counters, run = self._counters, self._run
        facts = {**facts, **self._memory()}
        if resume:
            self._saver.restore()
            if self._updates < counters.updates:
                raise UsageError(
                    f"train.frames must be at least {counters.frames}, what is done, got {self._options.frames}"
                )
            if not self._runner.keeps_streams:  # they begin new episodes
                self._agent.reset_carry()
        os.makedirs(run.path, exist_ok=True)
        config.save(run.config)
        self._saver.save()
        run.write_record(
            **facts, status="running", seed=self._options.seed, total_frames=self._options.frames,
            frames=counters.frames, updates=counters.updates,
            recurrent_parameters=sum(v.shape.num_elements() for v in self._agent.network.core_variables),
        )  # fmt: skip
        self._log = metrics.Metrics(run, self._columns, counters.updates)
        self._earlier = counters.seconds, counters.processor_seconds
        self._last_saved, self._row_started = time.monotonic(), (time.monotonic(), counters.frames)

    def run(self):
        """The updates."""
        with _signals() as received, _progress(self._options.frames, self._counters, self._streams.is_chief) as bar:
            while self._counters.updates < self._updates and not self._stops(received):
                to_row = self._options.log_updates - self._counters.updates % self._options.log_updates
                updates = min(self._runner.max_updates, to_row, self._updates - self._counters.updates)
                outcome = self._update(updates)
                if outcome is None:
                    break
                self._count(updates, outcome)
                self._show(bar, updates)
                if updates == to_row or self._counters.updates == self._updates:
                    self._write_row()
                late = time.monotonic() - self._last_saved > 60 * self._options.checkpoint_minutes
                if self._streams.any_process(late) and not self._save():
                    break
            self._signal = received[0] if received else None
            self._close()

    def end(self):
        """The Result; or raises what ended the run."""
        counters = self._counters
        if self._diverged:
            raise Diverged(f"{self._diverged}; the checkpoint of update {counters.updates} stands")
        if self._failure:
            raise self._failure
        mean_return = _mean(counters.recent_returns)
        return Result(
            counters.frames, counters.updates, counters.games, mean_return, counters.seconds,
            self._signal, counters.updates >= self._updates, self._last_errors, self._normalized(mean_return),
            registry.random_return(self._environment),
        )  # fmt: skip

    # One round of the loop.

    def _stops(self, received):
        late = self._deadline is not None and time.monotonic() > self._deadline
        return self._streams.any_process(received or late)

    def _update(self, updates):
        """The runner's Outcome; None if it failed or is not finite, which ends the loop."""
        try:
            outcome = self._runner.run(updates, self._counters)
        except ActorFailure as error:
            if self._streams.worker < self._streams.count:  # the other processes wait inside the update: save nothing
                raise
            self._failure = error
            return None
        bad = np.flatnonzero(~np.isfinite(outcome.losses).all(axis=1))
        if bad.size:
            update = self._counters.updates + int(bad[0]) + 1
            self._diverged = _reason(self._agent.loss_names, outcome.losses[bad[0]], update)
            return None
        return outcome

    def _count(self, updates, outcome):
        counters = self._counters
        counters.updates += updates
        counters.frames += updates * self._frames_per_update
        counters.games += len(outcome.returns)
        counters.recent_returns = (counters.recent_returns + outcome.returns)[-self._options.return_window :]
        counters.seconds = self._earlier[0] + time.monotonic() - self._started[0]
        self._losses.extend(outcome.losses)
        self._errors.extend(outcome.errors)

    def _show(self, bar, updates):
        name, score = "mean_return", _mean(self._counters.recent_returns)
        if self._runner.error_names:
            name, score = next(iter(_means(self._runner.error_names, self._errors).items()))
        bar.update(updates * self._frames_per_update)
        bar.set_postfix({name: "-" if score is None else f"{score:.4g}"}, refresh=False)

    def _count_processor(self):
        if self._earlier[1] is not None:
            self._counters.processor_seconds = self._earlier[1] + metrics.processor_seconds() - self._started[1]

    def _write_row(self):
        self._count_processor()
        counters, now = self._counters, time.monotonic()
        began, frames = self._row_started
        mean_return = _mean(counters.recent_returns)
        self._last_errors = _means(self._runner.error_names, self._errors)
        self._log.write(
            frames=counters.frames,
            updates=counters.updates,
            games=None if self._runner.error_names else counters.games,
            mean_return=mean_return,
            seconds=counters.seconds,
            processor_seconds=counters.processor_seconds,
            frames_per_second=(counters.frames - frames) / (now - began),
            learning_rate=float(self._schedule(self._agent.optimizer.iterations)),
            **{name: self._normalized(mean_return) for name in self._score_names},
            **self._last_errors,
            **_means(self._agent.loss_names, self._losses),
            **self._runner.extra,
        )
        self._losses, self._errors, self._row_started = [], [], (now, counters.frames)

    def _save(self):
        """A checkpoint and the curves; false if a weight is not finite."""
        if not self._save_checkpoint():
            return False
        self._plot()
        self._last_saved = time.monotonic()
        return True

    def _save_checkpoint(self):
        self._log.sync()
        self._count_processor()
        try:
            self._saver.save()
        except ArithmeticError as error:
            self._diverged = f"{error} after update {self._counters.updates}"
        return self._diverged is None

    def _close(self):
        """Leaves the run's files as a run leaves them that is over, or waits to be gone on with."""
        counters = self._counters
        if self._diverged is not None or not self._save_checkpoint():
            self._saver.restore()
        self._log.close()
        metrics.trim(self._run, self._columns, counters.updates)
        self._plot()
        export.save(self._agent.network, self._run.policy, self._agent.reward_scaler)
        done = counters.updates >= self._updates
        status = "diverged" if self._diverged else "finished" if done else "stopped"
        self._run.write_record(status=status, frames=counters.frames, updates=counters.updates)

    # What it says.

    def _memory(self):
        """Says how much memory the learner's carry takes, and what an agent stores of a rollout; facts for run.json."""
        variables = tf.nest.flatten((self._agent.carry, self._runner.carry))
        facts = {"carry_bytes": sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)}
        print(f"the learner's carry: {facts['carry_bytes'] / 2**20:.2f} MiB", flush=True)
        if hasattr(self._agent, "store_bytes"):
            try:
                facts["store_bytes"] = self._agent.store_bytes(self._options.rollout_length)
            except ValueError as error:
                raise UsageError(f"agent: {error}") from error
            print(f"carries stored of each rollout: {facts['store_bytes'] / 2**20:.2f} MiB", flush=True)
        return facts

    def _normalized(self, mean_return):
        return registry.normalized_score(self._environment, mean_return)

    def _plot(self):
        title = f"{self._run.read_record().get('preset') or 'training'}, {self._environment}"
        metrics.plot(self._run, title, registry.random_return(self._environment))


def _reason(names, losses, update):
    names = [f"{name} {value}" for name, value in zip(names, losses, strict=True) if not np.isfinite(value)]
    return f"{', '.join(names)} at update {update}"


def _means(names, rows):
    """The mean of each column of `rows` by name, None if there is no row."""
    means = np.mean(rows, axis=0).tolist() if rows else [None] * len(names)
    return dict(zip(names, means, strict=True))


def _mean(returns):
    return float(np.mean(returns)) if returns else None


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
