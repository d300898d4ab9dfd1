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
_SIZES = {"Ant": (13, 14), "HalfCheetah": (8, 9), "Hopper": (5, 6), "Walker2d": (8, 9)}  # of the positions, velocities


def _part(start, size):
    return lambda observation, taken: observation[..., start : start + size]


def _cosines_and_target(observation, taken):
    seen = observation[..., :6].copy()
    seen[..., 4:] *= np.expand_dims(np.asarray(taken) < _TARGET_STEPS, -1)
    return seen


# For each task with a mask: the task without it, what is seen of observations [..., N] that follow `taken` steps [...]
# of their episodes, and the size of that.
_MASKS = {"Reacher-PO-v5": ("Reacher", _cosines_and_target, 6)}
for _task, (_positions, _velocities) in _SIZES.items():
    _MASKS[f"{_task}-P-v5"] = (_task, _part(0, _positions), _positions)
    _MASKS[f"{_task}-V-v5"] = (_task, _part(_positions, _velocities), _velocities)


def register():
    """Registers the tasks with gymnasium, whether MuJoCo is installed or not."""
    for name, (task, _, _) in _MASKS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{__name__}:make_simulator",
                kwargs={"task": task},
                max_episode_steps=gymnasium.spec(f"{task}-v5").max_episode_steps,
                additional_wrappers=(WrapperSpec("Masked", f"{__name__}:Masked", {"name": name}),),
            )


def make_simulator(task, **options):
    """gymnasium's environment of a task such as "Ant", without wrappers; it takes the same `options`."""
    spec = gymnasium.spec(f"{task}-v5")
    try:
        create = load_env_creator(spec.entry_point)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ImportError(f'masked {task} needs MuJoCo: pip install "keras_rtrl[mujoco]".') from error
    return create(**{**spec.kwargs, **options})


def in_envpool(name):
    """EnvPool's task for a gymnasium id, and what is seen of its observations; (None, None) if it has no such task."""
    spec = gymnasium.spec(name)
    entry_point = spec.entry_point if isinstance(spec.entry_point, str) else ""
    if name in _MASKS and entry_point == f"{__name__}:make_simulator":
        task, see, size = _MASKS[name]
        return f"{task}-v5", (see, _unbounded(size))
    of_mujoco = entry_point.startswith("gymnasium.envs.mujoco.") and name.endswith("-v5")
    # Others have registered it again.
    changed = spec.kwargs or spec.additional_wrappers or spec.max_episode_steps is None
    return (name, None) if of_mujoco and not changed else (None, None)


class Masked(gymnasium.Wrapper, RecordConstructorArgs):
    """What a task with a mask shows of the task without it.

    Args:
      env: the task without a mask.
      name: that of the task with it, "Ant-P-v5".
    """

    def __init__(self, env, name):
        RecordConstructorArgs.__init__(self, name=name)
        gymnasium.Wrapper.__init__(self, env)
        _, self._see, size = _MASKS[name]
        self.observation_space = _unbounded(size)

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self._taken = 0
        return self._see(observation, self._taken), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        self._taken += 1
        return self._see(observation, self._taken), *rest


def _unbounded(size):
    return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
