"""Every option of every family, and the arguments of `make`, with what no option takes."""

import importlib.util
import inspect
import math
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import environments
from keras_rtrl.environments.memory_chain import MemoryChainEnv
from keras_rtrl.environments.tmaze import TMazeEnv

NAMES = {
    "atari": "ALE/Breakout-v5",
    "conditioning": "TraceConditioning-v0",
    "dmlab": "dmlab:rooms_watermaze",
    "gymnasium_vector": "CartPole-v1",
    "memory_chain": "MemoryChain-v0",
    "minigrid": "MiniGrid-MemoryS7-v0",
    "popgym": "popgym-RepeatFirstEasy-v0",
    "procgen": "procgen:chaser",
    "tmaze": "TMaze-v0",
    "vizdoom": "VizdoomBasic-v1",
}
PROCGEN = importlib.util.find_spec("procgen") or importlib.util.find_spec("envpool")
PATHS = {
    "level_cache": ["\0", "/dev/null", 3, b"x", [3], math.nan],
    "dataset_path": ["/nowhere", "", 3, b"x", [3], math.nan],
}
WRONG = ["x", "", "3", math.nan, math.inf, [3], [], {}, (1, 2), 0.5, -1, 2**31, 2**63, 10**20, 10**400, b"x", object()]


def options_of(module):
    signature = inspect.signature(importlib.import_module(f"keras_rtrl.environments.{module}").make)
    return [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]


def refuses(argument, name, **arguments):
    """One short ValueError that names the argument, and at once."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"\b{argument}\b") as caught:
        environments.make(name, **arguments)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("module", NAMES)
def test_options(module, lab_double):
    options = options_of(module)
    for option in options:
        for value in PATHS.get(option, [*WRONG, None]):
            refuses(option, NAMES[module], num_envs=1, workers=0, **{option: value})
    if module == "gymnasium_vector":
        for value in set(WRONG[:5]) | {10**20, 0.5, -1, 0, b"x", True}:
            refuses("max_episode_steps", NAMES[module], max_episode_steps=value)
    assert options or module in ("conditioning", "gymnasium_vector", "minigrid", "popgym", "vizdoom")


@pytest.mark.parametrize("module", NAMES)
def test_more_streams_than_a_machine_holds(module, lab_double):
    for num_envs in (10**12, 2**63, 10**20, 10**400):
        refuses("num_envs", NAMES[module], num_envs=num_envs, workers=0)
    if module not in ("tmaze", "memory_chain", "conditioning"):
        refuses("num_envs", NAMES[module], num_envs=10**9, workers=0)
        refuses("workers", NAMES[module], num_envs=10**5, workers=10**6)


@pytest.mark.parametrize("argument", ["num_envs", "seed", "workers"])
def test_arguments_of_make(argument):
    none = [None] if argument == "num_envs" else []
    small = [] if argument == "num_envs" else [2**31]
    for value in [*WRONG, *none, True, np.float32(1.5), 0 if argument == "num_envs" else -1]:
        if value not in small or argument == "workers":
            refuses(argument, "CartPole-v1", **{argument: value})


def test_longest():
    """What int32 can count the steps of is taken; the state counts no further."""
    for name, option in (("TMaze-v0", "corridor"), ("MemoryChain-v0", "length")):
        environments.make(name, **{option: 2**31 - 4}).reset()
        for value in (2**31 - 3, 10**20):
            refuses(option, name, **{option: value})
    for build, option in ((TMazeEnv, "corridor"), (MemoryChainEnv, "length")):
        with pytest.raises(ValueError, match=option):
            build(**{option: 10**20})
        build(stream=2**31 - 2)
        for stream in (-1, 0.5, "0", 2**31 - 1, 2**31, 10**20):
            with pytest.raises(ValueError, match="stream"):
                build(stream=stream)


ACTIONS = [
    np.array([0.0, 1.0]),
    np.array([0.5, 0.5]),
    np.array([np.nan, 0]),
    np.array(["0", "1"]),
    np.array([True, False]),
]


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "ALE/Pong-v5",
        pytest.param(
            "procgen:chaser", marks=pytest.mark.skipif(not PROCGEN, reason="neither procgen2 nor EnvPool is installed")
        ),
        "popgym-RepeatFirstEasy-v0",
        "MiniGrid-MemoryS7-v0",
        "TMaze-v0",
    ],
)
def test_actions_of_another_kind(name):
    """Floats are never cut to integers, not even whole ones."""
    env = environments.make(name, num_envs=2, seed=0)
    env.reset()
    for action in ACTIONS:
        with pytest.raises(ValueError, match="action must be integers"):
            env.step(action)
    for action, message in (
        ([0, 99], "lie in"),
        ([0, -1], "lie in"),
        ([0], "shape"),
        ([[0, 0]], "shape"),
        (0, "shape"),
    ):
        with pytest.raises(ValueError, match=f"action must .*{message}"):
            env.step(np.array(action))
    env.step(np.array([0, 0], np.int32))


@pytest.mark.parametrize("name", ["TMaze-v0", "MemoryChain-v0", "TraceConditioning-v0", "TracePatterning-v0"])
def test_actions_of_another_kind_in_a_graph(name):
    env = environments.make(name, num_envs=2, seed=0)
    env.reset()
    for action in (tf.zeros([2]), tf.zeros([2], tf.bool), tf.zeros([3], tf.int64), tf.zeros([2, 1], tf.int64)):
        with pytest.raises(ValueError, match="action must be integers of shape"):
            tf.function(env.step)(action)
    tf.function(env.step)(tf.zeros([2], tf.int32))


@pytest.mark.parametrize("action", [np.inf, -np.inf, np.nan, 1e300])
def test_actions_that_are_no_finite_numbers(action):
    env = environments.make("Pendulum-v1", num_envs=2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="action must be finite numbers"):
        env.step(np.array([[0.0], [action]]))
    for wrong in ([["0"], ["1"]], [[True], [False]], [[None], [None]]):
        with pytest.raises(ValueError, match="action must be numbers"):
            env.step(np.array(wrong))
    env.step(np.array([[0], [1]]))
