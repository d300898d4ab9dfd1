"""Real engines, held against gymnasium's own environments with the same seeds and actions."""

import os
import signal
import subprocess
import sys
import time

import cv2
import gymnasium
import numpy as np
import pytest
import vizdoom.gymnasium_wrapper
from tf_agents.environments import utils

from keras_rtrl import environments
from keras_rtrl.environments.vector import stream_seeds

FIRST, MID, LAST = 0, 1, 2
BASIC = "VizdoomBasic-v1"
TIME_LIMIT = 75  # of VizdoomBasic, in steps


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def engines(parent=None):
    """Process ids of the engines that a process has started, the last one last."""
    out = subprocess.run(["pgrep", "-P", str(parent or os.getpid()), "vizdoom"], capture_output=True, text=True).stdout
    return sorted(int(pid) for pid in out.split())


def gone(pids):
    """Whether all of the processes end within some seconds."""
    end = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def played(env, steps, seed=0):
    actions = np.random.default_rng(seed).integers(0, env.action_spec().maximum + 1, (steps, env.batch_size))
    return [env.reset()] + [env.step(action) for action in actions]


def test_streams_are_gymnasium_environments_of_their_own(folder):
    """Through terminations and truncations; nothing is written to the working directory."""
    streams, steps = 2, 160
    env = environments.make(BASIC, num_envs=streams, seed=5)
    spec, choices = env.observation_spec(), env.action_spec()
    assert (spec.shape, spec.dtype, choices.minimum, choices.maximum) == ((72, 96, 3), np.uint8, 0, 3)
    assert env.frames_per_step == 4
    actions = np.random.default_rng(0).integers(0, 4, (steps, streams))
    time_steps = [env.reset()] + [env.step(action) for action in actions]
    games = env.finished_games()
    env.close()
    assert os.listdir(folder) == []
    discounts = set()
    for stream, seed in enumerate(stream_seeds(5, streams).tolist()):
        plain, finished, done = gymnasium.make(BASIC, frame_skip=4, screen_resolution="RES_160X120"), [], True
        total, length = 0.0, 0
        for t, time_step in enumerate(time_steps):
            if done:
                observation, _ = plain.reset(seed=seed if t == 0 else None)
                reward, discount, done, expected, total, length = 0.0, 1.0, False, FIRST, 0.0, 0
            else:
                observation, reward, terminated, truncated, _ = plain.step(actions[t - 1, stream])
                done = terminated or truncated
                discount, expected = 0.0 if terminated and not truncated else 1.0, LAST if done else MID
                total, length = total + reward, length + 1
            screen = cv2.resize(observation["screen"], (96, 72), interpolation=cv2.INTER_AREA)
            if done:
                screen = time_steps[t - 1].observation[stream]
                finished.append((total, length, stream))
                discounts.add(discount)
                assert (length == TIME_LIMIT) == (discount == 1.0)
            np.testing.assert_array_equal(time_step.observation[stream], screen)
            got = time_step.step_type[stream], time_step.reward[stream], time_step.discount[stream]
            assert got == (expected, np.float32(reward), discount)
        plain.close()
        assert finished == [game for game in games if game[2] == stream]
    assert discounts == {0.0, 1.0}


def test_seeds():
    def screens(seed):
        env = environments.make(BASIC, num_envs=4, seed=seed)
        return np.stack([time_step.observation for time_step in played(env, 6)], axis=1)

    zero, one = screens(0), screens(1)
    np.testing.assert_array_equal(zero, screens(0))
    assert len(np.unique(np.concatenate([zero, one]).reshape(8, -1), axis=0)) == 8


def test_killed_engine_costs_its_own_stream_an_episode(caplog):
    env, twin = (environments.make(BASIC, num_envs=3, seed=0) for _ in range(2))
    victim = engines()[0]  # of env, the older one
    env.reset()
    twin.reset()
    for t in range(6):
        if t == 3:
            os.kill(victim, signal.SIGKILL)
        before, (time_step, undisturbed) = env.current_time_step(), (x.step(np.zeros(3, int)) for x in (env, twin))
        if t == 3:
            (lost,) = np.flatnonzero(time_step.step_type == LAST)
            others = np.arange(3) != lost
            assert (time_step.reward[lost], time_step.discount[lost]) == (0, 1)
            np.testing.assert_array_equal(time_step.observation[lost], before.observation[lost])
            assert f"stream {lost} begins a new episode in a fresh one" in caplog.text
        elif t > 3:
            assert time_step.step_type[lost] == (FIRST if t == 4 else MID)
        kept = slice(None) if t < 3 else others
        for a, b in zip(time_step, undisturbed, strict=True):
            np.testing.assert_array_equal(a[kept], b[kept])
    assert env.finished_games() == []
    env.close()
    twin.close()
    assert engines() == []


def test_engine_killed_before_a_first():
    env = environments.make(BASIC, num_envs=1, seed=0)
    env.reset()
    for _ in range(TIME_LIMIT):
        time_step = env.step(np.array([0]))
    assert time_step.step_type.tolist() == [LAST]
    os.kill(engines()[0], signal.SIGKILL)
    assert [env.step(np.array([0])).step_type.tolist() for _ in range(2)] == [[FIRST], [MID]]
    assert [length for _, length, _ in env.finished_games()] == [TIME_LIMIT]


def test_training_goes_on_after_a_kill(train_disturbed):
    env = environments.make(BASIC, num_envs=2, seed=0)
    losses, step_types = train_disturbed(env, lambda: os.kill(engines()[0], signal.SIGKILL))
    assert np.isfinite(losses).all()
    assert (step_types[:, 13] == LAST).sum() == 1
    assert (step_types[step_types[:, 13] == LAST, 14] == FIRST).all()
    env.close()


def test_engines_end_with_a_killed_process():
    env = environments.make(BASIC, num_envs=2, seed=0, workers=1)
    (worker,) = env.worker_pids
    theirs = engines(worker)
    assert len(theirs) == 2
    env.reset()
    os.kill(worker, signal.SIGKILL)
    assert env.step(np.zeros(2, int)).step_type.tolist() == [LAST] * 2
    assert env.step(np.zeros(2, int)).step_type.tolist() == [FIRST] * 2
    assert gone(theirs)
    env.close()


def test_reset_in_mid_game_starts_anew():
    env = environments.make(BASIC, num_envs=1, seed=0)
    env.reset()
    for _ in range(10):
        env.step(np.array([0]))
    assert env.reset().step_type.tolist() == [FIRST]
    for _ in range(TIME_LIMIT):
        time_step = env.step(np.array([0]))
    assert time_step.step_type.tolist() == [LAST]
    assert [length for _, length, _ in env.finished_games()] == [TIME_LIMIT]


def test_validates(monkeypatch):
    """Also without a display."""
    monkeypatch.setenv("DISPLAY", ":99")
    utils.validate_py_environment(environments.make("VizdoomMyWayHome-v1", num_envs=2, seed=0), episodes=1)


@pytest.mark.parametrize("action", [np.array([0.0, 0.0]), np.array([0, 4]), np.array([-1, 0]), np.array([0])])
def test_bad_actions(action):
    env = environments.make(BASIC, num_envs=2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="action must"):
        env.step(action)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("VizdoomBasc-v1", {}, "no environment is called 'VizdoomBasc-v1'; did you mean VizdoomBasic-v1"),
        ("VizdoomBasic-MultiBinary-v1", {}, "must have Discrete actions, such as VizdoomBasic-v1 has, got MultiBinary"),
        ("VizdoomDeathmatch-v1", {}, "must have Discrete actions, such as VizdoomBasic-v1 has, got Dict"),
        (BASIC, {"frame_skip": 2}, "has no option 'frame_skip'; it has none"),
        (BASIC, {"num_envs": 0}, "num_envs must be a whole number of at least 1, got 0"),
        (BASIC, {"seed": 1.5}, "seed must be a whole number of at least 0"),
        (BASIC, {"workers": -1}, "workers must be a whole number of at least 0"),
    ],
)
def test_bad_arguments(name, option, message):
    with pytest.raises(ValueError, match=message):
        environments.make(name, **option)


@pytest.mark.parametrize("package", ["vizdoom.gymnasium_wrapper", "cv2"])
def test_without_a_package(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'needs vizdoom and OpenCV: pip install "keras_rtrl\[vizdoom\]"'):
        environments.make(BASIC)


def test_an_engine_that_does_not_run(monkeypatch, folder):
    monkeypatch.setattr(vizdoom, "__file__", str(folder / "__init__.py"))  # there is no engine beside it
    with pytest.raises(RuntimeError, match=r"VizdoomBasic-v1: ViZDoom's engine does not run here: .*vizdoom"):
        environments.make(BASIC)
