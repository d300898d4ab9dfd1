"""A tiny CartPole that actors play, and a Ray cluster for them."""

import os

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


@pytest.fixture
def train():
    """Runs `keras-rtrl train` on the tiny CartPole in this process; returns the exit code."""

    def run(*words, preset="atari_r2ac_cpu", bindings=()):
        bindings = [word for binding in (*TINY_CARTPOLE, *bindings) for word in ("--gin", binding)]
        return cli.main(["train", preset, *words, *bindings])

    return run
