"""What the tests of killed processes share: a task with long episodes, clusters, and which processes are left."""

import contextlib
import json
import os
import time

PRESET = "atari_r2ac_cpu"
BATCH, STREAMS, ROLLOUT, LOG = 4, 2, 10, 10
BINDINGS = (
    "environment.name = 'Acrobot-v1'",  # long episodes: a mistake in the traces lasts
    f"environment.num_envs = {BATCH}",
    f"actors.num_streams = {STREAMS}",
    "ActorCriticNetwork.encoder = 'mlp'",
    "ActorCriticNetwork.encoder_units = (16,)",
    "ActorCriticNetwork.units = 8",
    "ActorCriticNetwork.core_options = {'forget_bias': 6.0}",  # and is not forgotten
    f"train.rollout_length = {ROLLOUT}",
    f"train.log_updates = {LOG}",
    "train.checkpoint_minutes = 0.005",
)
ACTORS_NODE = {"num_cpus": 3, "env_vars": {"RAY_max_direct_call_object_size": "100"}}
PATIENCE = 300  # seconds for what takes a few on a machine with nothing else to do

GONE = 90  # seconds; some parts of a Ray that was killed whole look for it for 60


def marked():
    """{pid: command line} of the processes that this file's programs began."""
    mark = f"KERAS_RTRL_FAULTS={os.getpid()}".encode()
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            if mark in environ.read().split(b"\0"):
                with open(f"/proc/{pid}/cmdline", "rb") as line:
                    found[int(pid)] = line.read().replace(b"\0", b" ").decode().strip()
    return found


def parent(pid):
    return int(stat(pid)[1])


def cpu(pid):
    """CPU seconds of a process."""
    words = stat(pid)
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def stat(pid):
    """The words of /proc/PID/stat after the process' name; zeros if there is no such process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()
    return ["0"] * 50


def left(others, raylets):
    """The marked processes not among the `others`: no idle workers of a cluster's `raylets`, none of Ray's agents."""
    found = [(pid, line) for pid, line in marked().items() if pid not in others and "Agent" not in line]
    return [pid for pid, line in found if "ray::IDLE" not in line or parent(pid) not in {r.pid for r in raylets}]


def wait_until(condition, seconds=PATIENCE, what=""):
    """Seconds until condition() is true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, what or "waited for too long"
        time.sleep(0.05)
    return time.monotonic() - began


@contextlib.contextmanager
def cluster_of(actors_nodes):
    """A cluster of the learner's node, and of others for actors, each of which has room for all.

    Their rollouts, small as they are, go through the object store.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(actors_nodes):
            cluster.add_node(**ACTORS_NODE)
        yield cluster
    finally:
        cluster.shutdown()


def report(**figures):
    print(json.dumps(figures, default=lambda x: round(float(x), 2)), flush=True)
