"""The learner's side of actors on Ray: it asks each actor for a few rollouts ahead, and takes them as they arrive."""

import collections
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_rtrl._errors import one_line

Delivery = collections.namedtuple("Delivery", ["actor", "rollout"])

_STEPS = 200  # of a game, in one request

# Actors see no GPU: the first one on the learner's machine would take all of the GPU's memory.
_ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


class ActorFailure(RuntimeError):
    """No cluster, an actor that failed, or actors that have sent nothing for longer than the time-out."""


@contextlib.contextmanager
def _ray_answers():
    """Raises ActorFailure if Ray itself fails: its processes on this machine have died, or its store is full."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        import ray

        if not isinstance(error, (OSError, ray.exceptions.RayError)):
            raise
        raise ActorFailure(f"Ray has failed: {type(error).__name__}: {_last_line(error)}") from error


class Fleet:
    """Actors on Ray.

    Each actor has at most `queue` requests. So a slow learner stops the actors, and the object store holds a bounded
    number of rollouts. The rollouts of one actor are taken in order. Ray restarts an actor that died, and sends it its
    requests again; its streams begin new episodes.

    Args:
      actor: a class with a method rollout(request, version, weights), which makes rollouts in an actor's process. Actor
        i is actor(i, *arguments), i from 0.
      arguments: tuple of further arguments of `actor`.
      num_actors: number of actors.
      queue: rollouts of each actor that are being made or wait for the learner.
      address: address of a Ray cluster ("auto": the one this machine is part of); None starts one on this machine.
      cpus: number of CPUs that Ray reserves for each actor.
      timeout: seconds that `take` waits for the next of its rollouts.

    Raises:
      ImportError: if Ray is not installed.
      ActorFailure: no cluster at that address, or Ray has failed.
    """

    @_ray_answers()
    def __init__(
        self,
        actor: type,
        arguments: tuple,
        *,
        num_actors: int,
        queue: int,
        address: str | None,
        cpus: int,
        timeout: float,
    ):
        self._num_actors, self._queue, self._timeout = num_actors, queue, timeout
        self._ray = _connect(address, num_actors * cpus)
        self._actors = [_start(actor, cpus, i, *arguments) for i in range(num_actors)]
        self._requests = [0] * num_actors
        self._pending = {}  # in the order of the requests
        self._version, self._weights = -1, None

    @_ray_answers()
    def publish(self, weights: Sequence[np.ndarray]) -> None:
        """Makes the next version of the weights, a list of arrays. Later requests act with it.

        Raises:
          ActorFailure: Ray has failed.
        """
        self._version += 1
        self._weights = self._ray.put(weights)

    @property
    def version(self) -> int:
        """Number of the newest weights, from 0."""
        return self._version

    @_ray_answers()
    def request(self, actors: Iterable[int] | None = None) -> None:
        """Asks each of `actors` (their numbers; None for all) for one more rollout with the newest weights.

        Raises:
          ActorFailure: Ray has failed.
        """
        for actor in range(self._num_actors) if actors is None else actors:
            reference = self._actors[actor].rollout.remote(self._requests[actor], self._version, self._weights)
            self._requests[actor] += 1
            self._pending[reference] = actor

    def start(self) -> None:
        """Asks every actor for its first rollouts, as many as `queue`."""
        for _ in range(self._queue):
            self.request()

    @_ray_answers()
    def take(self, count: int, fits: Callable[[int, Any], bool]) -> tuple[list[Delivery], int]:
        """The oldest rollout of each of `count` actors; waits for those that have not arrived.

        Args:
          count: number of actors.
          fits: called with an actor's number and its Rollout. If it returns False the rollout is dropped, and another
            one is requested.

        Returns:
          (list of Deliveries in the order of the actors' numbers, number of rollouts that are ready and still wait).

        Raises:
          ActorFailure: no missing rollout came before the time-out, an actor raised an exception, or Ray has failed.
        """
        taken, deadline = {}, time.monotonic() + self._timeout
        while len(taken) < count:
            heads = {}
            for reference, actor in self._pending.items():
                heads.setdefault(actor, reference)
            wanted = [reference for actor, reference in heads.items() if actor not in taken]
            # Each wait goes over all calls, so the first takes all that have arrived.
            ready, _ = self._ray.wait(wanted, num_returns=count - len(taken), timeout=0)
            late = time.monotonic() > deadline  # also if all that arrives is lost
            if not ready and not late:
                ready, _ = self._ray.wait(wanted, timeout=max(deadline - time.monotonic(), 0))
            if not ready or late:
                raise ActorFailure(
                    f"no rollout from {', '.join(f'actor {self._pending[r]}' for r in wanted[:5])}"
                    f"{' and others' if len(wanted) > 5 else ''} in {self._timeout:g} s"
                )
            for reference in ready:
                actor = self._pending.pop(reference)
                rollout = _fetch(self._ray, reference, actor, self._timeout)
                if rollout is None or not fits(actor, rollout):
                    self.request([actor])
                else:
                    taken[actor] = rollout
                    deadline = time.monotonic() + self._timeout
        pending = list(self._pending)
        waiting = self._ray.wait(pending, num_returns=len(pending), timeout=0)[0] if pending else ()
        return [Delivery(actor, taken[actor]) for actor in sorted(taken)], len(waiting)

    def close(self) -> None:
        """Ends the actors, and the cluster if it was begun here."""
        self._pending.clear()
        self._ray.shutdown()


@_ray_answers()
def play_games(
    actor: type,
    arguments: Sequence[tuple],
    *,
    weights: Sequence[np.ndarray],
    quotas: Sequence[Sequence[int]],
    progress: Callable[[list], Any],
    address: str | None,
    cpus: int,
    timeout: float,
) -> list[list[list[tuple[float, int, bool]]]]:
    """Whole games that actors play greedily.

    An actor that dies plays its games again from the first, with the same seed.

    Args:
      actor: a class with a method play(weights, steps), which plays games in an actor's process. Actor i is
        actor(i, *arguments[i]).
      arguments: for each actor a tuple of its further arguments.
      weights: list of arrays, in the order of the network's variables.
      quotas: for each actor the number of games of each of its streams.
      progress: called with the results so far; None stands for an actor that has sent nothing yet.
      address, cpus, timeout: as for Fleet.

    Returns:
      For each actor a list of (return, length in agent steps, whether cut off) a stream, at least as many as asked for.

    Raises:
      ImportError: if Ray is not installed.
      ActorFailure: no cluster at that address, an actor that did not make its next steps before the time-out, or Ray
        has failed.
    """
    ray = _connect(address, len(quotas) * cpus)
    try:
        weights = ray.put(weights)
        actors = [_start(actor, cpus, i, *own) for i, own in enumerate(arguments)]
        games = [None] * len(quotas)
        pending = {actor.play.remote(weights, _STEPS): i for i, actor in enumerate(actors)}
        while pending:
            ready, _ = ray.wait(list(pending), timeout=timeout)
            if not ready:
                late = ", ".join(f"actor {i}" for i in pending.values())
                raise ActorFailure(f"no steps from {late} in {timeout:g} s")
            i = pending.pop(ready[0])
            played = _fetch(ray, ready[0], i, timeout)
            games[i] = games[i] if played is None else played
            progress(games)
            if played is None or any(len(games) < wanted for games, wanted in zip(played, quotas[i], strict=True)):
                pending[actors[i].play.remote(weights, _STEPS)] = i
            else:
                actors[i] = None  # its CPU is free for another
        return games
    finally:
        ray.shutdown()


def _connect(address, cpus):
    """Ray, connected to the cluster at `address`, or to a new one on this machine with at least `cpus` CPUs."""
    try:
        import ray
    except ImportError as error:
        raise ImportError('actors need Ray: pip install "keras_rtrl[ray]"') from error
    options = {}
    host, _, port = (address or "").rpartition(":")
    if port.isdigit() and "/" not in host:  # Ray itself would try for many minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ActorFailure(f"no Ray cluster at {address}: {error.strerror or error}") from error
    if address is None:
        options = {"include_dashboard": False, "num_cpus": max(cpus, os.cpu_count())}
        os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 any other program stops the actors
    try:
        ray.init(address=address or "local", logging_level="ERROR", log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ActorFailure(f"no Ray cluster at {address or 'this machine'}: {one_line(error)}") from error
    return ray


def _start(actor, cpus, number, *args):
    import ray

    remote = ray.remote(num_cpus=cpus, max_restarts=-1, max_task_retries=-1, runtime_env={"env_vars": _ENVIRONMENT})
    return remote(actor).options(name=f"actor {number}").remote(number, *args)  # as Ray's dashboard lists it


def _fetch(ray, reference, actor, timeout):
    """The result that an actor has sent; None if it is lost. Raises ActorFailure if the actor raised an exception."""
    try:
        return ray.get(reference, timeout=timeout)
    except (ray.exceptions.ObjectLostError, ray.exceptions.ActorUnavailableError):
        return None
    except ray.exceptions.GetTimeoutError as error:
        raise ActorFailure(f"the result of actor {actor} did not arrive in {timeout:g} s") from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise ActorFailure(f"actor {actor}: {type(cause).__name__}: {one_line(cause)}") from error
    except ray.exceptions.ActorDiedError as error:
        raise ActorFailure(f"actor {actor} is dead for good: {_last_line(error)}") from error


def _last_line(error):
    return str(error).strip().rpartition("\n")[2]
