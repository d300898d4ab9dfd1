"""EnvPool's MuJoCo against gymnasium's, from one state with the same actions."""

import copy
import importlib.util
import sys

import gymnasium
import numpy as np
import pytest
from tf_agents.environments import utils
from tf_agents.trajectories.time_step import StepType

from keras_rtrl import environments
from keras_rtrl.environments.envpool_vector import EnvPoolVector
from keras_rtrl.environments.vector import stream_seeds

HERE = importlib.util.find_spec("envpool") is not None
needs_envpool = pytest.mark.skipif(not HERE, reason="EnvPool is not installed")

STREAMS = 3
# The positions that are no part of the observation: where it is on the ground.
GROUND = {"Ant": 2, "HalfCheetah": 1, "Hopper": 1, "Humanoid": 2, "HumanoidStandup": 2, "Swimmer": 2, "Walker2d": 1}
MASKED = [f"{task}-{part}-v5" for task in ("Ant", "HalfCheetah", "Hopper", "Walker2d") for part in "PV"]
PLAIN = [*GROUND, "InvertedPendulum", "InvertedDoublePendulum", "Pusher", "Reacher"]
NAMES = [f"{task}-v5" for task in PLAIN] + MASKED + ["Reacher-PO-v5"]


def state_of(task, observation, env):
    """The positions and velocities that a first observation without a mask shows."""
    size, speeds = env.model.nq, env.model.nv
    if task == "Reacher":
        cosines, sines, target = observation[:2], observation[2:4], observation[4:6]
        return np.concatenate([np.arctan2(sines, cosines), target]), np.concatenate([observation[6:8], [0, 0]])
    if task == "InvertedDoublePendulum":
        return np.concatenate([observation[:1], np.arctan2(observation[1:3], observation[3:5])]), observation[5:8]
    if task == "Pusher":
        joints = observation[:7]
        # The object and the goal slide from where the model has them, along y and then along x.
        env.set_state(np.concatenate([joints, np.zeros(4)]), np.zeros(speeds))
        slid = observation[17:19] - env.get_body_com("object")[:2]
        goal = observation[20:22] - env.get_body_com("goal")[:2]
        return np.concatenate([joints, slid[::-1], goal[::-1]]), np.concatenate([observation[7:14], np.zeros(4)])
    ground = GROUND.get(task, 0)
    seen = size - ground
    return np.concatenate([np.zeros(ground), observation[:seen]]), observation[seen : seen + speeds]


@needs_envpool
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_gymnasium(name):
    """Contacts amplify the last bits of a number, so a part of an episode is compared."""
    task = name.partition("-")[0]
    env = environments.make(name, STREAMS, seed=5, engine="envpool")
    shown, _ = EnvPoolVector(f"{task}-v5", STREAMS).reset(seed=stream_seeds(5, STREAMS).tolist())
    simulators = [gymnasium.make(name) for _ in range(STREAMS)]
    by_gymnasium = environments.make(name, STREAMS, engine="gymnasium")
    assert env.time_step_spec() == by_gymnasium.time_step_spec()
    assert env.action_spec() == by_gymnasium.action_spec()
    for simulator, observation in zip(simulators, shown, strict=True):
        simulator.reset(seed=0)
        simulator.unwrapped.set_state(*state_of(task, observation, simulator.unwrapped))
    seen = env.reset().observation
    if name == f"{task}-v5":
        np.testing.assert_array_equal(seen, shown.astype(np.float32))
    spec = env.action_spec()
    rng = np.random.default_rng(0)
    alive = set(range(STREAMS))
    for _ in range(60):
        action = rng.uniform(spec.minimum, spec.maximum, (STREAMS, *spec.shape)).astype(np.float32)
        time_step = env.step(action)
        for stream in sorted(alive):
            observation, reward, terminated, truncated, _ = simulators[stream].step(action[stream])
            np.testing.assert_allclose(time_step.observation[stream], observation, 1e-5, 1e-5)
            np.testing.assert_allclose(time_step.reward[stream], reward, 1e-5, 1e-5)
            ended = StepType.LAST if terminated or truncated else StepType.MID
            assert time_step.step_type[stream] == ended
            assert time_step.discount[stream] == 1 - terminated
            if ended == StepType.LAST:
                alive.remove(stream)
    assert alive or task not in ("HalfCheetah", "Swimmer")


@needs_envpool
@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Swimmer-v5", "Reacher-PO-v5"])
def test_time_limit(name):
    limit = gymnasium.spec(name).max_episode_steps
    env = environments.make(name, 2, seed=0, engine="envpool")
    env.reset()
    steps = [env.step(np.zeros((2, *env.action_spec().shape), np.float32)) for _ in range(limit + 1)]
    kinds = np.array([step.step_type for step in steps])
    np.testing.assert_array_equal(kinds, np.repeat([[1]] * (limit - 1) + [[2], [0]], 2, axis=1))
    np.testing.assert_array_equal(steps[limit - 1].discount, [1.0, 1.0])
    np.testing.assert_array_equal(steps[limit].reward, [0.0, 0.0])
    assert (steps[limit].observation != steps[limit - 1].observation).any()
    assert [(length, stream) for _, length, stream in env.finished_games()] == [(limit, 0), (limit, 1)]


@needs_envpool
@pytest.mark.parametrize("name", ["Hopper-P-v5", "Reacher-PO-v5"])
def test_seeds(name):
    env, again, other = (environments.make(name, 2, seed=seed, engine="envpool") for seed in (0, 0, 1))
    first = env.reset().observation
    np.testing.assert_array_equal(first, again.reset().observation)
    firsts = [first, other.reset().observation, env.reset().observation]
    assert len(np.unique(np.concatenate(firsts), axis=0)) == 6
    utils.validate_py_environment(env, episodes=2)


@needs_envpool
def test_auto():
    """With options it is gymnasium's, which takes them."""
    options = {"max_episode_steps": 3}
    env = environments.make("Reacher-v5", 1, seed=0, **options)
    env.reset()
    kinds = [int(env.step(np.zeros((1, 2), np.float32)).step_type[0]) for _ in range(3)]
    assert kinds == [1, 1, 2]
    auto, named = (environments.make("Reacher-v5", 1, seed=0, engine=engine) for engine in ("auto", "envpool"))
    np.testing.assert_array_equal(auto.reset().observation, named.reset().observation)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Pendulum-v1", {}, "engine must be 'auto' or 'gymnasium' for Pendulum-v1"),
        ("Ant-v4", {}, "engine must be 'auto' or 'gymnasium' for Ant-v4"),
        ("Ant-P-v5", {"max_episode_steps": 3}, "engine must be 'auto' or 'gymnasium' for Ant-P-v5 with options"),
    ],
)
def test_tasks_that_it_does_not_have(name, options, message):
    with pytest.raises(ValueError, match=message):
        environments.make(name, engine="envpool", **options)


def test_a_task_that_somebody_has_changed(monkeypatch):
    """It is gymnasium's; its time limit is taken over."""
    spec = copy.deepcopy(gymnasium.spec("Ant-v5"))
    spec.kwargs["ctrl_cost_weight"] = 0.0
    monkeypatch.setitem(gymnasium.registry, "Ant-v5", spec)
    with pytest.raises(ValueError, match="engine must be 'auto' or 'gymnasium' for Ant-v5: "):
        environments.make("Ant-v5", engine="envpool")
    short = copy.deepcopy(gymnasium.spec("Reacher-v5"))
    short.max_episode_steps = 3
    monkeypatch.setitem(gymnasium.registry, "Reacher-v5", short)
    env = environments.make("Reacher-v5", 1, seed=0)
    env.reset()
    assert [int(env.step(np.zeros((1, 2), np.float32)).step_type[0]) for _ in range(3)] == [1, 1, 2]


@pytest.mark.parametrize("engine", ["graph", None, 3, ["envpool"]])
def test_unknown_engines(engine):
    with pytest.raises(ValueError, match="engine must be one of"):
        environments.make("Ant-P-v5", engine=engine)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r'Ant-v5 needs EnvPool: pip install "keras_rtrl\[envpool\]"'):
        environments.make("Ant-P-v5", engine="envpool")
