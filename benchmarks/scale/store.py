"""What Ray's object store and calls cost, without anything of this package."""

import functools
import os
import time

import numpy as np
import ray

from benchmarks.scale.trainers import median_seconds


@ray.remote
class _Maker:
    """Makes arrays on request, and waits on request."""

    def make(self, size):
        return np.ones(size, np.uint8)

    def nothing(self):
        return None

    def wait(self, seconds):
        time.sleep(seconds)


def measure(sizes, pending, rounds):
    """Median seconds over `rounds`: dict.

    "put": of each of `sizes`, in bytes; "get": of each size an actor has made; "make": of such a call up to its end;
    "call": of one call of many that return nothing; "wait": of `ray.wait` without time-out on each number of `pending`
    calls.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # as actors of a cluster of one machine
    ray.init("local", include_dashboard=False, logging_level="ERROR", log_to_driver=False, num_cpus=2)
    try:
        actor = _Maker.remote()
        ray.get(actor.nothing.remote())
        found = {"put": [], "get": [], "make": [], "wait": []}
        for size in sizes:
            array = np.ones(size, np.uint8)
            found["put"].append(median_seconds(functools.partial(ray.put, array), rounds))
            make, get = [], []
            for _ in range(rounds + 1):
                start = time.perf_counter()
                reference = actor.make.remote(size)
                ray.wait([reference])
                ready = time.perf_counter()
                ray.get(reference)
                make.append(ready - start)
                get.append(time.perf_counter() - ready)
            found["make"].append(float(np.median(make[1:])))
            found["get"].append(float(np.median(get[1:])))
        calls = 500
        found["call"] = median_seconds(lambda: ray.get([actor.nothing.remote() for _ in range(calls)]), 5) / calls
        for number in pending:
            actor.wait.remote(5.0 + number / 2000)
            references = [actor.nothing.remote() for _ in range(number)]
            wait = functools.partial(ray.wait, references, num_returns=number, timeout=0)
            found["wait"].append(median_seconds(wait, 5))
            assert not ray.wait(references, timeout=0)[0], "the calls were to be pending"
            ray.get(references)
        return found
    finally:
        ray.shutdown()
