import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from tf_agents.environments import utils

from keras_rtrl import environments

mujoco = pytest.importorskip("mujoco")

LEGS = ["hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3", "hip_4", "ankle_4"]
CHEETAH = ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
HOPPER = ["thigh_joint", "leg_joint", "foot_joint"]
WALKER = [*HOPPER, "thigh_left_joint", "leg_left_joint", "foot_left_joint"]
# The joints whose positions, and velocities, are seen, in order; of the Ant's free joint not where it is on the ground.
POSITIONS = {
    "Ant": ["root", *LEGS],
    "HalfCheetah": ["rootz", "rooty", *CHEETAH],
    "Hopper": ["rootz", "rooty", *HOPPER],
    "Walker2d": ["rootz", "rooty", *WALKER],
}
VELOCITIES = {task: joints if task == "Ant" else ["rootx", *joints] for task, joints in POSITIONS.items()}
WIDTHS = {"Ant": (13, 14), "HalfCheetah": (8, 9), "Hopper": (5, 6), "Walker2d": (8, 9)}
NAMES = [f"{task}-{part}-v5" for task in POSITIONS for part in "PV"] + ["Reacher-PO-v5"]


def by_joint(env, names, part):
    """The simulator's positions or velocities of the joints named."""
    data, model = env.unwrapped.data, env.unwrapped.model
    values = []
    for name in names:
        joint = model.joint(name)
        assert joint.name == name
        free = joint.type[0] == mujoco.mjtJoint.mjJNT_FREE
        if part == "P":
            start = joint.qposadr[0]
            values += list(data.qpos[start + 2 : start + 7] if free else data.qpos[start : start + 1])
        else:
            start = joint.dofadr[0]
            values += list(data.qvel[start : start + (6 if free else 1)])
    return np.array(values)


@pytest.mark.parametrize("task", POSITIONS)
@pytest.mark.parametrize("part", ["P", "V"])
def test_what_is_seen_by_the_names_of_the_joints(task, part):
    env = gymnasium.make(f"{task}-{part}-v5")
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(8):
        observation, *_ = env.step(env.action_space.sample())
    names = (POSITIONS if part == "P" else VELOCITIES)[task]
    assert observation.shape == env.observation_space.shape == (WIDTHS[task]["PV".index(part)],)
    limit = 10 if part == "V" and task in ("Hopper", "Walker2d") else np.inf  # gymnasium clips these
    np.testing.assert_array_equal(observation, np.clip(by_joint(env, names, part), -limit, limit))
    data = env.unwrapped.data
    assert not np.isin(observation, data.qvel if part == "P" else data.qpos).any()


@pytest.mark.parametrize("task", POSITIONS)
def test_nothing_but_the_observation_differs(task):
    options = {"include_cfrc_ext_in_observation": False} if task == "Ant" else {}
    envs = [gymnasium.make(f"{task}-v5", **options), *(gymnasium.make(f"{task}-{part}-v5") for part in "PV")]
    seen = [env.reset(seed=1)[0] for env in envs]
    actions = np.random.default_rng(0).uniform(-1, 1, (200, *envs[0].action_space.shape)).astype(np.float32)
    for action in actions:
        np.testing.assert_array_equal(np.concatenate(seen[1:]), seen[0])
        steps = [env.step(action) for env in envs]
        seen = [step[0] for step in steps]
        assert steps[1][1:4] == steps[2][1:4] == steps[0][1:4]
        if steps[0][2]:
            break
    assert envs[1].spec.max_episode_steps == envs[0].spec.max_episode_steps == 1000


def test_reacher():
    env, plain = gymnasium.make("Reacher-PO-v5"), gymnasium.make("Reacher-v5")
    assert env.observation_space.shape == (6,)
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    for episode in range(2):
        masked, _ = env.reset(seed=episode)
        full, _ = plain.reset(seed=episode)
        for t, action in enumerate([*actions, None]):
            data, model = env.unwrapped.data, env.unwrapped.model
            angles = np.array([data.qpos[model.joint(name).qposadr[0]] for name in ("joint0", "joint1")])
            target = np.array([data.qpos[model.joint(name).qposadr[0]] for name in ("target_x", "target_y")])
            np.testing.assert_array_equal(masked[:4], np.concatenate([np.cos(angles), np.sin(angles)]))
            np.testing.assert_array_equal(masked[4:], target if t < 5 else np.zeros(2))
            np.testing.assert_array_equal(masked[:4], full[:4])
            if action is None:
                break
            masked, reward, _, truncated, _ = env.step(action)
            full, expected, *_ = plain.step(action)
            assert reward == expected
            assert truncated == (t == 49)


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_checker(name):
    check_env(gymnasium.make(name), skip_render_check=True)


@pytest.mark.parametrize("name", ["Hopper-P-v5", "Reacher-PO-v5"])
def test_through_make(name):
    env = environments.make(name, num_envs=2, seed=0)
    again, other = environments.make(name, num_envs=2, seed=0), environments.make(name, num_envs=2, seed=1)
    observation = env.reset().observation
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, again.reset().observation)
    assert len(np.unique(np.concatenate([observation, other.reset().observation]), axis=0)) == 4
    utils.validate_py_environment(env, episodes=2)


def test_truncation_at_the_time_limit():
    env = environments.make("Reacher-PO-v5", num_envs=1, seed=0)
    env.reset()
    time_steps = [env.step(np.zeros((1, 2), np.float32)) for _ in range(51)]
    assert [t.step_type[0] for t in time_steps[48:]] == [1, 2, 0]
    assert time_steps[49].discount[0] == 1.0


def test_without_the_package(monkeypatch):
    for module in [m for m in sys.modules if m.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r'masked Ant needs MuJoCo: pip install "keras_rtrl\[mujoco\]"'):
        environments.make("Ant-P-v5", engine="gymnasium")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"did you mean .*Ant-P-v5"):
        environments.make("Ant-PV-v5")


@pytest.mark.slow
def test_what_mesa_draws_beside_tensorflow(tmp_path, monkeypatch):
    """A worker that draws by EGL lives; Mesa would call TensorFlow's LLVM and end it by SIGSEGV."""

    (tmp_path / "drawn.py").write_text(
        "import gymnasium\n"
        "def make():\n"
        "    env = gymnasium.make('Reacher-v5', render_mode='rgb_array', width=32, height=24)\n"
        "    return gymnasium.wrappers.AddRenderObservation(env, render_only=True)\n"
        "gymnasium.register('Drawn-v0', make)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    code = "import drawn, numpy; env = drawn.make(); env.reset(seed=0); env.close()"
    if subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no EGL")
    env = environments.make("drawn:Drawn-v0", num_envs=1, seed=0, workers=1)
    observation = env.reset().observation
    assert observation.shape == (1, 24, 32, 3)
    assert observation.std() > 0
    env.close()
