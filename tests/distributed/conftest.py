"""A tiny CartPole that actors play, and a Ray cluster for them."""

import os

import faults
import pytest
from tf_agents.agents import tf_agent as _tf_agent  # noqa: F401  TF-Agents before anything that needs it

from keras_rtrl.train import cli

TINY_CARTPOLE = (
    "environment.name = 'CartPole-v1'",
    "environment.num_envs = 4",
    "ActorCriticNetwork.encoder = 'mlp'",
    "ActorCriticNetwork.encoder_units = (16,)",
    "ActorCriticNetwork.units = 8",
    "train.rollout_length = 10",
    "train.log_updates = 10",
)


@pytest.fixture(scope="module")
def address():
    """The address of a Ray cluster, so that not every run begins one."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)  # for failing.py
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
        yield cluster.address
        cluster.shutdown()


@pytest.fixture(scope="module")
def nothing_left():
    """Marks all that Ray begins, and sees that nothing of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_RTRL_FAULTS", str(os.getpid()))
        patch.setenv("SPT_NOENV", "1")  # Ray's titles of processes would overwrite the mark
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_health_check_period_ms", "1000")  # a dead node is noticed after five
        yield
        faults.wait_until(lambda: not faults.marked(), faults.GONE, "processes that are left")


@pytest.fixture(scope="module")
def cluster(nothing_left):
    """A cluster of three machines, on two of which actors run."""
    with faults.cluster_of(2) as cluster:
        yield cluster


@pytest.fixture
def train():
    """Runs `keras-rtrl train` on the tiny CartPole in this process; returns the exit code."""

    def run(*words, preset="atari_r2ac_cpu", bindings=()):
        bindings = [word for binding in (*TINY_CARTPOLE, *bindings) for word in ("--gin", binding)]
        return cli.main(["train", preset, *words, *bindings])

    return run
