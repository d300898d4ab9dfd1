"""MiniGrid's memory tasks in the graph, held against MiniGrid's own with the same mazes, starts and actions."""

import collections
import copy
import functools

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from minigrid.wrappers import OneHotPartialObsWrapper

from keras_rtrl import environments

FIRST, MID, LAST = 0, 1, 2
MEMORY = "MiniGrid-Memory{}-v0"
STARTS = {"S7": 4 * 4, "S13Random": 4 * sum(range(4, 11)), "S17Random": 4 * sum(range(4, 15))}


def flat(observation):
    return np.concatenate([np.eye(4)[observation["direction"]], observation["image"].ravel()]).astype(np.float32)


@functools.cache
def plain_starts(size):
    """MiniGrid's environment at each start of each maze, the observation there, and the start's probability."""
    env, found = OneHotPartialObsWrapper(gymnasium.make(MEMORY.format(size), disable_env_checker=True)), {}
    seed = 0
    while len(found) < STARTS[size]:
        observation, _ = env.reset(seed=seed)
        maze = env.unwrapped
        key = (maze.success_pos, maze.grid.encode().tobytes(), tuple(maze.agent_pos))
        if key not in found:
            found[key] = (copy.deepcopy(env), flat(observation))
        seed += 1
    in_maze = collections.Counter(key[:2] for key in found)
    return [(*start, 1 / len(in_maze) / in_maze[key[:2]]) for key, start in found.items()]


@pytest.mark.parametrize("size", ["S7", "S13Random", pytest.param("S17Random", marks=pytest.mark.full)])
def test_equals_minigrid(size):
    """Each episode, of random play to its very end, is one that MiniGrid plays from one of its starts."""
    streams = 6
    env = environments.make(MEMORY.format(size), num_envs=streams, seed=4)
    step, rng = tf.function(env.step, jit_compile=True), np.random.default_rng(0)
    episodes, finished = [[] for _ in range(streams)], []
    time_step, actions = env.reset(), np.zeros(streams, int)
    chances = np.array([1, 1, 4, 0.2, 0.2, 0.2, 0.2]) / 6.8
    while len(finished) < 12:
        for i in range(streams):
            if time_step.step_type[i] == FIRST:
                episodes[i] = []
            episodes[i].append((actions[i], tf.nest.map_structure(lambda part, i=i: part[i].numpy(), time_step)))
            if time_step.step_type[i] == LAST:
                finished.append(episodes[i])
        actions = rng.choice(7, streams, p=chances)
        time_step = step(tf.constant(actions))
    ends = {(float(episode[-1][1].discount), episode[-1][1].reward > 0) for episode in finished}
    assert {(0.0, True), (0.0, False)} <= ends
    for episode in finished:
        assert any(plays(start, episode) for start in plain_starts(size))


def plays(start, episode):
    """Whether MiniGrid's environment answers the actions as the episode has it."""
    env, observation, _ = copy.deepcopy(start)
    reward, terminated, truncated = 0.0, False, False
    for t, (action, time_step) in enumerate(episode):
        if t:
            observation, reward, terminated, truncated, _ = env.step(int(action))
            observation = flat(observation)
        kind = FIRST if t == 0 else LAST if terminated or truncated else MID
        same = (observation == time_step.observation).all() and time_step.reward == np.float32(reward)
        if not (same and time_step.step_type == kind and time_step.discount == (0.0 if terminated else 1.0)):
            return False
    return True


@pytest.mark.parametrize("engine", ["graph", "gymnasium"])
def test_moves_only(engine):
    """The same mazes and starts, the three actions that move, and no others."""
    whole, moves = (
        environments.make(MEMORY.format("S7"), num_envs=5, seed=2, engine=engine, moves_only=moves_only)
        for moves_only in (False, True)
    )
    assert (whole.action_spec().maximum, moves.action_spec().maximum) == (6, 2)
    steps = [(whole.reset(), moves.reset())]
    for action in np.random.default_rng(1).integers(0, 3, (100, 5)):
        steps.append((whole.step(action), moves.step(action)))
    for one, other in steps:
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
    with pytest.raises(ValueError, match="action must"):
        moves.step(np.full(5, 3))


def test_time_runs_out():
    """Who only turns around gets nothing, and after MiniGrid's limit a truncation."""
    env = environments.make(MEMORY.format("S7"), num_envs=2, seed=0)
    limit = gymnasium.make(MEMORY.format("S7")).unwrapped.max_steps
    step, kinds = tf.function(env.step), []
    env.reset()
    for _ in range(limit + 1):
        time_step = step(tf.zeros([2], tf.int64))
        kinds.append(time_step.step_type.numpy().tolist())
        if time_step.is_last()[0]:
            assert time_step.discount.numpy().tolist() == [1.0, 1.0]
            assert time_step.reward.numpy().tolist() == [0.0, 0.0]
    assert kinds == [[MID, MID]] * (limit - 1) + [[LAST, LAST], [FIRST, FIRST]]


@pytest.mark.parametrize("size", ["S7", "S13Random"])
def test_starts_are_as_likely_as_minigrids(size):
    number = 20_000
    seen = environments.make(MEMORY.format(size), num_envs=number, seed=1).reset().observation.numpy()
    expected = collections.Counter()
    for _, observation, probability in plain_starts(size):
        expected[observation.tobytes()] += probability
    found = collections.Counter(row.tobytes() for row in seen)
    assert set(found) == set(expected)
    for first, probability in expected.items():
        spread = np.sqrt(number * probability * (1 - probability))
        assert abs(found[first] - number * probability) < 5 * spread
