"""EnvPool (Weng et al., arXiv 2206.10558) as a gymnasium vector environment: C++ threads step the simulators."""

import os

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from keras_rtrl.environments.registry import needing


class EnvPoolVector(VectorEnv):
    """Streams of one of EnvPool's tasks. The step after an episode's end begins the next one and ignores its action.

    Args:
      task: EnvPool's name of it, "Ant-v5".
      num_envs: number of streams B.
      see: None, or a pair: a function from observations [B, ...], and the number of steps [B] that each episode has
        taken, to what is seen of them; and the gymnasium space of that.
      **options: EnvPool's options of the task.

    Raises:
      ImportError: EnvPool is not installed, or does not import.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  gymnasium's name

    def __init__(self, task, num_envs, *, see=None, **options):
        with needing(task, ["envpool"], 'EnvPool: pip install "keras_rtrl[envpool]".'):
            import envpool

            spec = envpool.make_spec(task, **options)  # the task's own libraries are imported here
        self._make = lambda seeds: envpool.make_gymnasium(
            task, num_envs=num_envs, env_seed=seeds, num_threads=min(num_envs, len(os.sched_getaffinity(0))), **options
        )
        self._pool = None
        self._see, space = see or (lambda observation, taken: observation, spec.observation_space)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = space, spec.action_space
        self.observation_space, self.action_space = (
            batch_space(each, num_envs) for each in (space, self.single_action_space)
        )

    def reset(self, *, seed=None, options=None):
        """Begins new episodes; with seeds, one a stream, those that belong to them."""
        if seed is not None:
            self.close()
            self._pool = self._make(seed)
        observation, info = self._pool.reset()
        return self._see(observation, info["elapsed_step"]), {}

    def step(self, actions):
        observation, reward, terminated, truncated, info = self._pool.step(
            np.asarray(actions, self.single_action_space.dtype)
        )
        return self._see(observation, info["elapsed_step"]), reward, terminated, truncated, {}

    def close_extras(self, **kwargs):
        if self._pool is not None:
            self._pool.close()
