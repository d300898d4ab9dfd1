"""Actors and a learner as discrete events: what the measured costs of the parts predict for the whole."""

import collections
import functools
import heapq
import itertools
import math

_COSTS = "steps wait act rollout learn threads update request bytes_in bytes_out actor_threads"
Costs = collections.namedtuple("Costs", _COSTS, defaults=[0.0, 0.0, 0.0, 0.0, 1])
Costs.__doc__ = """The costs of an actor's rollout and of a learner's update.

steps: T, steps of a rollout.
wait: seconds of a step in which no core works.
act: seconds that a step takes on cores.
rollout: further seconds that a rollout takes on cores.
learn: seconds of an update on free cores.
threads: cores that the learner keeps busy meanwhile.
update: further seconds of one core that an update takes.
request: seconds of one core, of the learner's process, for each request under way, at every update.
bytes_in: bytes of a rollout, through the learner's network card.
bytes_out: bytes of the weights that an actor needs, through the same card.
actor_threads: cores that an actor keeps busy while it is on cores.
"""


class _Machine:
    """Cores that jobs share evenly, and timers. A job on them is never faster than on free cores."""

    def __init__(self, cores):
        self._cores = cores
        self._jobs, self._timers, self._order = [], [], itertools.count()
        self._demand = 0.0
        self._done = 0.0  # seconds of work that a job would have had that was there from the start
        self.now = self.worked = 0.0

    def job(self, seconds, threads, then):
        self._demand += threads
        heapq.heappush(self._jobs, (self._done + seconds, next(self._order), threads, then))

    def timer(self, seconds, then):
        heapq.heappush(self._timers, (self.now + seconds, next(self._order), then))

    def step(self):
        """Goes on to the next event and calls what follows it."""
        speed = min(1.0, self._cores / self._demand) if self._jobs else 1.0
        job_at = self.now + (self._jobs[0][0] - self._done) / speed if self._jobs else math.inf
        timer_at = self._timers[0][0] if self._timers else math.inf
        now = min(job_at, timer_at)
        if self._jobs:
            self._done = self._jobs[0][0] if now == job_at else self._done + (now - self.now) * speed
            self.worked += (now - self.now) * min(self._cores, self._demand)
        self.now = now
        if now == job_at:
            _, _, threads, then = heapq.heappop(self._jobs)
            self._demand -= threads
        else:
            then = heapq.heappop(self._timers)[2]
        then()


def simulate(costs, actors, count, queue=2, cores=math.inf, bandwidth=math.inf, updates=200, warm_up=20):
    """Updates a second of one learner and its actors.

    Args:
      costs: Costs.
      actors: number of actors.
      count: rollouts of an update, each of another actor: those that came first.
      queue: requests of each actor that are under way or wait for the learner.
      cores: that actors and learner share; infinity if each has its own.
      bandwidth: bytes a second of the learner's network card, each way.
      updates, warm_up: that are timed, and before them.

    Returns:
      (updates a second, cores busy on the average).
    """
    machine = _Machine(cores)
    requests = [0] * actors  # that an actor has not begun
    acting = [False] * actors
    ready = [0] * actors
    arrived = collections.deque()
    free = {"in": 0.0, "out": 0.0}
    state = {"updates": 0, "learning": False, "start": None}

    def transfer(way, size, then):
        begin = max(machine.now, free[way])
        free[way] = begin + (size / bandwidth if size else 0.0)
        machine.timer(free[way] - machine.now, then)

    def start(actor):
        for _ in range(queue):
            request(actor)

    def request(actor):
        requests[actor] += 1
        act(actor)

    def act(actor):
        if requests[actor] and not acting[actor]:
            requests[actor] -= 1
            acting[actor] = True
            if costs.wait:
                step(actor, 0)
            else:
                machine.job(costs.steps * costs.act + costs.rollout, costs.actor_threads, lambda: sent(actor))

    def step(actor, t):
        if t < costs.steps:
            machine.timer(costs.wait, lambda: machine.job(costs.act, costs.actor_threads, lambda: step(actor, t + 1)))
        else:
            machine.job(costs.rollout, costs.actor_threads, lambda: sent(actor))

    def sent(actor):
        acting[actor] = False
        transfer("in", costs.bytes_in, lambda: arrive(actor))
        act(actor)

    def arrive(actor):
        ready[actor] += 1
        if ready[actor] == 1:
            arrived.append(actor)
        learn()

    def learn():
        if state["learning"] or len(arrived) < count:
            return
        state["learning"] = True
        taken = [arrived.popleft() for _ in range(count)]
        for actor in taken:
            ready[actor] -= 1
            if ready[actor]:
                arrived.append(actor)
        besides = costs.update + costs.request * actors * queue
        machine.job(costs.learn, costs.threads, lambda: machine.job(besides, 1, lambda: learnt(taken)))

    def learnt(taken):
        state["learning"] = False
        state["updates"] += 1
        if state["updates"] == warm_up:
            state["start"] = machine.now, machine.worked
        for actor in taken:
            transfer("out", costs.bytes_out, lambda actor=actor: request(actor))
        learn()

    for actor in range(actors):  # no two at once, or they would meet at every step
        machine.timer(actor / actors * costs.steps * (costs.wait + costs.act), functools.partial(start, actor))
    while state["updates"] < warm_up + updates:
        machine.step()
    seconds = machine.now - state["start"][0]
    return updates / seconds, (machine.worked - state["start"][1]) / seconds
