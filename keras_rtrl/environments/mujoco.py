"""Masked MuJoCo: gymnasium's tasks with a part of the observation left out.

"Ant-P-v5", "HalfCheetah-P-v5", "Hopper-P-v5" and "Walker2d-P-v5" keep positions and angles, the same with -V- keep
velocities. "Reacher-PO-v5" keeps the angles' cosines and sines, and the target's position, which it shows in an
episode's first 5 observations; later ones have zeros there. Rewards, actions and time limits are those of the tasks
without a mask; gymnasium leaves the positions along the ground out of every observation, and the Ant's contact forces
(include_cfrc_ext_in_observation) are off.
"""

import gymnasium
import numpy as np
from gymnasium.envs.registration import WrapperSpec, load_env_creator
from gymnasium.utils import RecordConstructorArgs

_TARGET_STEPS = 5


def register():
    """Registers the tasks with gymnasium, whether MuJoCo is installed or not."""
    for task in ("Ant", "HalfCheetah", "Hopper", "Walker2d"):
        _register(f"{task}-P-v5", task, "KeepPart", {"part": "qpos"})
        _register(f"{task}-V-v5", task, "KeepPart", {"part": "qvel"})
    _register("Reacher-PO-v5", "Reacher", "FadingTarget", {})


def _register(name, task, wrapper, kwargs):
    if name not in gymnasium.registry:
        gymnasium.register(
            name,
            entry_point=f"{__name__}:make_simulator",
            kwargs={"task": task},
            max_episode_steps=gymnasium.spec(f"{task}-v5").max_episode_steps,
            additional_wrappers=(WrapperSpec(wrapper, f"{__name__}:{wrapper}", kwargs),),
        )


def make_simulator(task, **options):
    """gymnasium's environment of a task such as "Ant", without wrappers; it takes the same `options`."""
    spec = gymnasium.spec(f"{task}-v5")
    try:
        create = load_env_creator(spec.entry_point)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ImportError(f'masked {task} needs MuJoCo: pip install "keras_rtrl[mujoco]".') from error
    return create(**{**spec.kwargs, **options})


class KeepPart(gymnasium.ObservationWrapper, RecordConstructorArgs):
    """Observations that keep the positions and angles, or the velocities.

    Args:
      env: a locomotion task of gymnasium, v5, whose observation begins with the two.
      part: "qpos" or "qvel".
    """

    def __init__(self, env, part):
        RecordConstructorArgs.__init__(self, part=part)
        gymnasium.ObservationWrapper.__init__(self, env)
        sizes = env.unwrapped.observation_structure
        start = sizes["qpos"] if part == "qvel" else 0
        self._kept = slice(start, start + sizes[part])
        self.observation_space = _unbounded(sizes[part])

    def observation(self, observation):
        return observation[self._kept]


class FadingTarget(gymnasium.Wrapper, RecordConstructorArgs):
    """The Reacher's cosines, sines and target alone, the last zero after an episode's first 5 observations."""

    def __init__(self, env):
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self.observation_space = _unbounded(6)

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self._observations = 0
        return self._masked(observation), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        return self._masked(observation), *rest

    def _masked(self, observation):
        self._observations += 1
        observation = observation[:6].copy()
        if self._observations > _TARGET_STEPS:
            observation[4:] = 0.0
        return observation


def _unbounded(size):
    return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
