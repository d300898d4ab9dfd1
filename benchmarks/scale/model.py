"""From the measured costs: the load of each learner with a fleet of any size, and the inputs of the simulation."""

import collections

import numpy as np

from benchmarks.scale.simulation import Costs, simulate

# Assumptions; nothing here measures them.
NETWORK = 1.25e9  # bytes a second of a network card, each way: 10 Gbit/s
MEMORY = 64e9  # bytes of a learner's machine
STORE = 0.3 * MEMORY  # of it for Ray's object store, Ray's own default
ACTORS_PER_NODE = 16  # one a core
QUEUE = 2

Load = collections.namedtuple("Load", "learning process rollouts weights traces store")
Load.__doc__ = """The load of one learner if no actor ever waits, each entry as a share of what the learner has.

learning: time of the updates.
process: its one Python thread outside the updates: Ray's calls, objects taken and put, batches.
rollouts: bytes a second into its network card.
weights: bytes a second out of its network card, also those of gradients summed over learners.
traces: memory for the carry of all streams of its actors.
store: object store for all rollouts that may wait.
"""


def fit(found, preset):
    """(fixed, per stream) seconds of an update, least squares."""
    rows = found["learner"][preset]
    per_stream, fixed = np.polyfit(rows["streams"], rows["seconds"], 1)
    return float(fixed), float(per_stream)


def rollout_bytes(size, streams=1):
    """Bytes of an actor's rollout."""
    return streams * (size["frames"] + size["else"])


def seconds_of(found, what, size):
    """Seconds of "put", "get" or "make" at an object's size: linear between those measured and beyond."""
    sizes, seconds = found["store"]["sizes"], found["store"][what]
    if size > sizes[-1]:
        return seconds[-1] * size / sizes[-1]
    return float(np.interp(size, sizes, seconds))


def per_request(found):
    """Seconds that each call under way costs at every update.

    If all rollouts have arrived, `ray.wait` goes over the oldest call of each actor once, and over all calls once.
    """
    return (1 / QUEUE + 1) * found["store"]["wait"][-1] / found["store"]["pending"][-1]


def overhead(found, size, count):
    """Seconds of the learner's process for one update, without the update itself and without pending requests."""
    streams = size["streams"] // count
    taking = found["store"]["call"] + seconds_of(found, "get", rollout_bytes(size, streams))
    joining = float(np.interp(count, found["joining"]["rollouts"], found["joining"]["seconds"]))
    joining *= rollout_bytes(size, size["streams"]) / found["joining"]["bytes"]
    return count * taking + joining + seconds_of(found, "put", size["weights"])


def load(found, preset, rate, streams, actors, learners, faster=1.0):
    """The Load of each of `learners` learners with actors / learners actors each, which sum their gradients.

    `preset`: one whose learner was measured; `rate`: agent steps a second of an actor that never waits; `streams`: of
    each actor; `faster`: how many times as fast as the measured one a learner's update is.
    """
    size = found["sizes"][preset]
    count = size["streams"] // streams
    mine = actors / learners
    updates = mine * rate / (size["streams"] * size["steps"])  # a second
    fixed, per_stream = fit(found, preset)
    weights = min(count, mine / ACTORS_PER_NODE) + 2 * (learners - 1) / learners  # each node takes a version once
    return Load(
        learning=updates * (fixed + per_stream * size["streams"]) / faster,
        process=updates * (overhead(found, size, count) + per_request(found) * mine * QUEUE),
        rollouts=updates * count * rollout_bytes(size, streams) / NETWORK,
        weights=updates * weights * size["weights"] / NETWORK,
        traces=mine * streams * size["traces"] / MEMORY,
        store=mine * QUEUE * rollout_bytes(size, streams) / STORE,
    )


def lag(size, streams, actors, learners=1):
    """Versions of the weights between acting and learning: all requests under way, in updates, less one."""
    return QUEUE * actors / learners * streams / size["streams"] - 1


def actor_rate(found, streams):
    """(agent steps a second, cores used) of one Atari actor of so many streams that nobody waits for."""
    row = found["atari"][f"1 actor of {streams}, nobody learns"]
    return row["rate"], row["own"]


def waiting_costs(found, actors, streams):
    """Costs of the waiting environment's actors of `streams` streams, which wait one after another."""
    fixed, per_stream = fit(found, "waiting")
    alone = found["waiting"][str(streams)]["alone"]["rate"] / streams
    size = found["sizes"]["waiting"] | {"streams": actors * streams}
    wait = 0.02 * streams
    return Costs(
        steps=size["steps"], wait=wait, act=1 / alone - wait, rollout=0.0,
        learn=fixed + per_stream * actors * streams, threads=1, update=overhead(found, size, actors),
        request=per_request(found),
    )  # fmt: skip


def atari_costs(found, preset, streams, cores):
    """Costs of Atari actors of `streams` streams on their learner's machine, of so many cores."""
    size = found["sizes"][preset]
    rate, used = actor_rate(found, streams)
    learner, count = found["atari"]["learner alone"], size["streams"] // streams
    return Costs(
        steps=size["steps"], wait=0.0, act=streams / rate, rollout=0.0,
        learn=size["streams"] * size["steps"] / learner["rate"], threads=min(learner["own"], cores),
        update=overhead(found, size, count), request=per_request(found), actor_threads=used,
    )  # fmt: skip


def predictions(found, preset):
    """Agent steps a second, measured and simulated: list of (name, measured, predicted)."""
    cores, rows = found["cores"], []
    for streams, group in found["waiting"].items():
        for name, row in group.items():
            if name != "alone":
                n, each = int(name), int(streams)
                costs = waiting_costs(found, n, each)
                updates, _ = simulate(costs, n, n, QUEUE, cores)
                rows.append((f"waiting, {n} actors of {each}", row["rate"], updates * n * each * costs.steps))
    size = found["sizes"][preset]
    for name, (actors, streams) in found["fleets"].items():
        costs = atari_costs(found, preset, streams, cores)
        updates, _ = simulate(costs, actors, size["streams"] // streams, QUEUE, cores)
        rows.append((f"Breakout, {name}", found["atari"][name]["rate"], updates * size["streams"] * size["steps"]))
    return rows


def curve(found, preset, streams, numbers, faster):
    """Agent steps a second that the simulation predicts for a learner with actors on other machines."""
    size = found["sizes"][preset]
    count = size["streams"] // streams
    costs = atari_costs(found, preset, streams, found["cores"])
    costs = costs._replace(learn=costs.learn / faster, bytes_in=rollout_bytes(size, streams), bytes_out=size["weights"])
    rates = []
    for actors in numbers:
        updates, _ = simulate(costs, actors, count, QUEUE, bandwidth=NETWORK, updates=100, warm_up=2 * actors // count)
        rates.append(updates * size["streams"] * size["steps"])
    return rates
