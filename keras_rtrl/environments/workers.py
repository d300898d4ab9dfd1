"""Streams of one environment in several processes that share their time steps as memory."""

import contextlib
import math
import mmap
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent import futures
from multiprocessing import reduction

import numpy as np
import tensorflow as tf
from absl import logging
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories.time_step import StepType

from keras_rtrl.environments import vector
from keras_rtrl.environments.halves import HalvedEnvironment
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds

# A server process forks the workers. It has imported everything they need and runs nothing. The parent cannot be forked
# since it runs TensorFlow's threads, and a new interpreter would need seconds to import TensorFlow.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOAD = ["keras_rtrl_worker"]

_TRIES = 3  # to replace a worker, before the vector gives up


def in_workers(build, num_envs, seed, workers):
    """A WorkerVector; for two or more workers a HalvedEnvironment of two. Arguments as for WorkerVector."""
    if workers == 1:
        return WorkerVector(build, num_envs, seed=seed, workers=1)
    first = (workers + 1) // 2
    cut = sum(len(streams) for streams in np.array_split(np.arange(num_envs), workers)[:first])
    seeds = stream_seeds(seed, num_envs)
    with futures.ThreadPoolExecutor(2) as pool:  # both begin at once
        halves = [
            pool.submit(WorkerVector, build, len(part), seed=part, workers=count, offset=offset)
            for part, count, offset in ((seeds[:cut], first, 0), (seeds[cut:], workers - first, cut))
        ]
        errors = [half.exception() for half in halves]
    for half, error in zip(halves, errors, strict=True):
        if error is None and any(errors):
            half.result().close()
    for error in errors:
        if error is not None:
            raise error
    return HalvedEnvironment([half.result() for half in halves])


class WorkerVector(VectorEnvironment):
    """A batch of streams split over worker processes. Each process steps its own environment.

    The values equal those of the same streams in one process. Time steps are copies, which the caller may keep.

    A worker that dies is replaced, with a warning in the log, by a new one with seeds that this vector never used. Its
    streams get LAST with discount 1, reward 0 and the observation before it, then FIRST of the new process. A stream
    that was due a FIRST gets it from the new process at once. Other streams are not affected. Unfinished games of the
    dead worker are not in `finished_games`. An exception in a worker is raised here, with its traceback; after that
    `reset` starts again.

    Workers ignore signals from the terminal. They end with `close`, with this object, and with this process.

    Args:
      build: function of (number of streams, their seeds as an int32 array) that gives a VectorEnvironment; pickled.
      num_envs: number of streams B.
      seed: as for `stream_seeds`.
      workers: number of processes, 1 to num_envs.
      offset: number of this vector's first stream in the environment that it is a half of; the log uses those numbers.

    Raises:
      ValueError: a `build` that cannot be pickled.
      RuntimeError: a worker dies before it has built its environment.
      Exceptions of `build`.
    """

    def __init__(
        self,
        build: Callable[[int, np.ndarray], VectorEnvironment],
        num_envs: int,
        *,
        seed: int | np.ndarray | None,
        workers: int,
        offset: int = 0,
    ):
        try:
            reduction.ForkingPickler.dumps(build)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"an environment in workers must have options that can be pickled: {error}.") from error
        seeds = stream_seeds(seed, num_envs)
        self._build, self._offset = build, offset
        self._generator, self._used_seeds = np.random.default_rng(seeds), set(seeds.tolist())
        self._workers = []
        self._finalizer = weakref.finalize(self, _end, self._workers)
        _PROCESSES.set_forkserver_preload(_PRELOAD)
        try:
            for streams in np.array_split(np.arange(num_envs), workers):
                self._workers.append(_Worker(build, [streams], seeds, offset))
            try:
                (observation_spec, action_spec, self.frames_per_step), *_ = [w.answer() for w in self._workers]
            except _Died as death:
                raise RuntimeError(
                    f"a worker process ended with exit code {death} before it had built its environment; a program "
                    'that uses workers must do its work under `if __name__ == "__main__":`.'
                ) from None
            super().__init__(num_envs, observation_spec, action_spec)
            self._memory = _Memory(num_envs, observation_spec, action_spec)
            for worker in self._workers:
                worker.share(self._memory)
        except BaseException:
            self._finalizer()
            raise

    @property
    def worker_pids(self):
        """Process ids of the workers now living, in the order of their streams."""
        return [worker.pid for worker in self._workers]

    def step_async(self, action):
        """Begins a step with action [B, ...]; `step_wait` must follow."""
        if self._current_time_step is None:
            raise RuntimeError("reset() must come before step_async().")
        self._check_open()
        action = self._checked(action)
        if any(worker.owed for worker in self._workers):
            raise RuntimeError("step_wait() must come before the next step_async().")
        self._memory.action[:] = action
        for worker in self._workers:
            worker.ask("step")

    def step_wait(self):
        """Ends the step begun with `step_async`. Returns its TimeStep, also as `current_time_step`."""
        before = self._current_time_step
        games, held, errors = [], np.zeros(self._num_envs, bool), []
        for i, worker in enumerate(self._workers):
            try:
                games += worker.answer()
            except _Died as death:
                over = before.step_type[worker.streams] == StepType.LAST
                held[worker.streams[~over]] = True
                self._replace(i, death, [worker.streams[over], worker.streams[~over]])
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        self._finished += sorted(games, key=lambda game: game[2])
        time_step = self._memory.read()
        if held.any():
            time_step.step_type[held], time_step.reward[held], time_step.discount[held] = StepType.LAST, 0.0, 1.0
            new, old = tf.nest.flatten(time_step.observation), tf.nest.flatten(before.observation)
            for new_array, old_array in zip(new, old, strict=True):
                new_array[held] = old_array[held]
        self._current_time_step = time_step
        return time_step

    def _step(self, action):
        self.step_async(action)
        return self.step_wait()

    def _reset(self):
        self._check_open()
        for worker in self._workers:
            worker.ask("reset")
        for i, worker in enumerate(self._workers):
            try:
                worker.answer()
            except _Died as death:
                self._replace(i, death, [worker.streams])
        return self._memory.read()

    def _replace(self, i, death, parts):
        """Puts a fresh process in worker i's place; the streams parts[0] begin at once, parts[1] a step later."""
        for _ in range(_TRIES):
            old = self._workers[i]
            old.end()
            logging.warning(
                "A worker process (%d) ended with exit code %s: streams %s begin new episodes in a fresh one.",
                old.pid, death, old.numbers,
            )  # fmt: skip
            seeds = np.zeros(self._num_envs, np.int32)
            seeds[old.streams] = self._fresh_seeds(len(old.streams))
            begun = len(parts[0]) > 0
            self._workers[i] = worker = _Worker(self._build, [part for part in parts if len(part)], seeds, self._offset)
            worker.share(self._memory)
            try:
                worker.answer()
                if begun:
                    worker.ask("begin")
                    worker.answer()
                return
            except _Died as again:
                death = again
        raise RuntimeError(f"worker processes of streams {worker.numbers} keep ending, exit code {death}.")

    def _fresh_seeds(self, count):
        seeds = []
        while len(seeds) < count:
            seed = int(self._generator.integers(2**31))
            if seed not in self._used_seeds:
                self._used_seeds.add(seed)
                seeds.append(seed)
        return seeds

    def _check_open(self):
        if not self._finalizer.alive:
            raise RuntimeError("the environment is closed.")

    def close(self):
        """Ends the workers; a second call does nothing."""
        self._finalizer()


class _Died(Exception):
    """A worker process has ended; the argument is its exit code."""


class _Worker:
    """The parent's side of one process. Its part k of the streams is one environment in it.

    The process has its own temporary folder, which is removed with it: a simulator that is killed removes no files.
    """

    def __init__(self, build, parts, seeds, offset):
        self.streams = np.sort(np.concatenate(parts))
        self.numbers = (self.streams + offset).tolist()
        self._folder = tempfile.mkdtemp(prefix="keras_rtrl_worker_")
        self._connection, theirs = _PROCESSES.Pipe()
        environ = {**os.environ, "TMPDIR": self._folder}
        arguments = (theirs, build, parts, [seeds[part] for part in parts], offset, environ)
        self._process = _PROCESSES.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.owed = 1  # answers; the first says what the environment is

    @property
    def pid(self):
        return self._process.pid

    def share(self, memory):
        with contextlib.suppress(OSError):  # it has ended: the next answer tells
            self._connection.send(memory.arguments)
            reduction.send_handle(self._connection, memory.descriptor, self._process.pid)

    def ask(self, command):
        with contextlib.suppress(OSError):
            self._connection.send(command)
        self.owed += 1

    def answer(self):
        """The answer to the last question; raises _Died, or what the worker raised. Drops answers nobody waited for."""
        if not self.owed:
            raise RuntimeError("step_async() must come before step_wait().")
        while self.owed:
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                self._process.join(5)
                raise _Died(self._process.exitcode) from None
            self.owed -= 1
        if isinstance(answer, _Raised):
            raise answer.error from RuntimeError(f"in a worker process:\n{answer.traceback}")
        return answer

    def end(self, seconds=0):
        """Ends the process; after some seconds by force, and with it any process that its simulator has started."""
        self.dismiss()
        self._process.join(seconds)
        if self._process.exitcode != 0:
            self._process.kill()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.join(1)
        shutil.rmtree(self._folder, ignore_errors=True)

    def dismiss(self):
        """Lets the process end as soon as it is done with what it does."""
        self._connection.close()


def _end(workers):
    for worker in workers:
        worker.dismiss()
    deadline = time.monotonic() + 2
    for worker in workers:
        worker.end(max(0, deadline - time.monotonic()))
    workers.clear()


class _Memory:
    """A time step and an action [B, ...] in anonymous memory that ends with the processes that know it."""

    def __init__(self, num_envs, observation_spec, action_spec, descriptor=None):
        self.arguments = (num_envs, observation_spec, action_spec)
        specs = (ts.time_step_spec(observation_spec), action_spec)
        sizes = [num_envs * math.prod(s.shape) * np.dtype(s.dtype).itemsize for s in tf.nest.flatten(specs)]
        starts = np.cumsum([0] + [-(-size // 64) * 64 for size in sizes]).tolist()
        self.descriptor = os.memfd_create("keras_rtrl") if descriptor is None else descriptor
        weakref.finalize(self, os.close, self.descriptor)
        if descriptor is None:
            os.ftruncate(self.descriptor, starts[-1])
        memory = mmap.mmap(self.descriptor, starts[-1])
        arrays = [
            np.ndarray((num_envs, *spec.shape), spec.dtype, memory, start)
            for spec, start in zip(tf.nest.flatten(specs), starts, strict=False)
        ]
        self._time_step, self.action = tf.nest.pack_sequence_as(specs, arrays)

    def read(self):
        return tf.nest.map_structure(np.copy, self._time_step)

    def write(self, streams, time_step):
        for array, value in zip(tf.nest.flatten(self._time_step), tf.nest.flatten(time_step), strict=True):
            array[streams] = value


class _Raised:
    """An exception of a worker, in a form that can be sent to the parent."""

    def __init__(self, error):
        self.traceback = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
            self.error = error
        except Exception:
            self.error = RuntimeError(f"{type(error).__name__}: {error}")


def _work(connection, build, parts, seeds, offset, environ):
    """Runs in the worker: builds an environment for each part of its streams, then steps and resets as told."""
    os.setsid()  # signals from the terminal reach neither this process nor a simulator's own
    os.set_inheritable(connection.fileno(), False)  # or the parent would not see this end while a child of it lives
    threading.Thread(target=_follow_parent, args=[environ["TMPDIR"]], daemon=True).start()
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None  # which the server may have looked up
    envs = []
    try:
        try:
            for part, part_seeds in zip(parts, seeds, strict=True):
                vector.stream_numbers.set((part + offset).tolist())
                envs.append(build(len(part), part_seeds))
            env = envs[0]
            connection.send((env.observation_spec(), env.action_spec(), env.frames_per_step))
        except Exception as error:
            connection.send(_Raised(error))
            return
        arguments = connection.recv()
        memory = _Memory(*arguments, reduction.recv_handle(connection))
        begun = [False] * len(parts)
        while True:
            command = connection.recv()
            if command == "reset":
                begun = [False] * len(parts)
            games = []
            try:
                for k, (env, streams) in enumerate(zip(envs, parts, strict=True)):
                    if not begun[k]:
                        memory.write(streams, env.reset())
                        begun[k] = True
                        if command == "begin":
                            break
                    else:
                        memory.write(streams, env.step(memory.action[streams]))
                    games += [(total, length, int(streams[i])) for total, length, i in env.finished_games()]
                answer = games
            except Exception as error:
                answer = _Raised(error)
            connection.send(answer)
    except (EOFError, OSError):  # the parent has closed its end
        pass
    finally:
        for env in envs:
            env.close()
        shutil.rmtree(environ["TMPDIR"], ignore_errors=True)  # the parent may be gone


def _follow_parent(folder):
    """Waits until the parent ends; then removes the folder and kills this process and those of its simulator."""
    multiprocessing.parent_process().join()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
