"""Any gymnasium environment whose spaces are arrays or choices as a batched PyEnvironment."""

import importlib

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import DtypeObservation, FlattenObservation
from tf_agents.specs import array_spec
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl.environments.registry import unknown_name
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds


def make(name, num_envs, seed, **options):
    """The gymnasium environment `name`, stepped `num_envs` at a time; `options` go to `gymnasium.make`.

    Observations that are a MultiDiscrete or a Tuple come as one float32 vector, each choice one-hot.
    """
    module, colon, identifier = name.rpartition(":")
    if colon:  # as in gymnasium.make: the module registers the environment
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise ImportError(f"{name} needs a module that cannot be imported: {error}") from error
    name = identifier
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise unknown_name(name, list(gymnasium.registry)) from error

    def build():
        try:
            env = gymnasium.make(name, **options)
        except TypeError as error:
            raise ValueError(f"{name} does not take the options {options}: {error}") from error
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f"{name} needs a package that is not installed: {error}") from error
        return flattened(env) if isinstance(env.observation_space, (MultiDiscrete, Tuple)) else env

    return vector(build, num_envs, seed)


def vector(build, num_envs, seed):
    """`num_envs` of the environments that `build()` makes, stepped one after the other."""
    return GymnasiumVector(SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP), seed)


def flattened(env):
    """`env` with its observation as one float32 vector, each choice one-hot."""
    return DtypeObservation(FlattenObservation(env), np.float32)


class GymnasiumVector(VectorEnvironment):
    """A gymnasium vector environment as a batched PyEnvironment.

    Observations keep their dtype, save float64, which comes as float32. Discrete actions and observations are int64
    from 0 to n - 1, MultiDiscrete actions int64 vectors of such. Floating-point actions are clipped to their bounds
    before the simulator sees them. Rewards are float32 [B]; `finished_games` sums them in float64.

    Args:
      vector_env: a gymnasium.vector.VectorEnv with autoreset NEXT_STEP.
      seed: a non-negative int or None; each stream's own seed is drawn from it.
    """

    def __init__(self, vector_env, seed=None):
        self._env = vector_env
        super().__init__(
            vector_env.num_envs,
            _spec(vector_env.single_observation_space, "observation"),
            _spec(vector_env.single_action_space, "action"),
        )
        self._observation_start = getattr(vector_env.single_observation_space, "start", 0)
        self._action_start = getattr(vector_env.single_action_space, "start", 0)
        self._seeds = stream_seeds(seed, vector_env.num_envs).tolist()

    def _reset(self):
        observation, _ = self._env.reset(seed=self._seeds)
        self._seeds = None  # later resets go on from where the generators stand
        self._forget_games()
        return self._first(self._observed(observation))

    def _step(self, action):
        first = self._current_time_step.step_type == StepType.LAST
        action = self._checked(action)
        if np.issubdtype(action.dtype, np.floating):
            action = np.clip(action, self._action_spec.minimum, self._action_spec.maximum)
        observation, reward, terminated, truncated, _ = self._env.step(action + self._action_start)
        over = terminated | truncated
        self._count(reward, ~first, over)
        step_type = np.where(first, StepType.FIRST, np.where(over, StepType.LAST, StepType.MID)).astype(np.int32)
        discount = np.where(terminated, 0.0, 1.0).astype(np.float32)
        return TimeStep(step_type, reward.astype(np.float32), discount, self._observed(observation))

    def _observed(self, observation):
        return (observation - self._observation_start).astype(self._observation_spec.dtype, copy=False)

    def close(self):
        self._env.close()


def _spec(space, name):
    if isinstance(space, Discrete):
        return array_spec.BoundedArraySpec((), np.int64, 0, int(space.n) - 1, name=name)
    if isinstance(space, MultiDiscrete) and name == "action":
        return array_spec.BoundedArraySpec(space.shape, np.int64, np.zeros_like(space.nvec), space.nvec - 1, name=name)
    if isinstance(space, Box):
        dtype = np.float32 if space.dtype == np.float64 else space.dtype
        limits = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
        low, high = (np.clip(bound, limits.min, limits.max).astype(dtype) for bound in (space.low, space.high))
        return array_spec.BoundedArraySpec(space.shape, dtype, low, high, name=name)
    choices = "Box, Discrete or MultiDiscrete" if name == "action" else "Box or Discrete"
    raise ValueError(f"the {name} space must be {choices}, got {space}.")
