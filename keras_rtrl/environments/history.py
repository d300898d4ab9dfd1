"""The one wrapper: observations that also hold the last reward and the last action."""

import numpy as np
import tensorflow as tf
from tf_agents.environments import py_environment, tf_environment, tf_wrappers, wrappers
from tf_agents.specs import array_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl.environments.halves import HalvedEnvironment


def with_history(
    env: py_environment.PyEnvironment | tf_environment.TFEnvironment,
) -> py_environment.PyEnvironment | tf_environment.TFEnvironment:
    """The same environment with the last reward and action in its observations.

    A TF-Agents network sees only observations and step types, but a memory also needs its last action and reward. The
    observation becomes a dict:

      observation: the environment's own.
      last_reward: float32 [B], the reward that came with this time step, not clipped; 0 at FIRST.
      last_action: like the action spec, the action that led to this step, before clipping; zeros at FIRST, which has no
        last action. A reader must check the step type too, as `ActorCriticNetwork` does.

    Args:
      env: a batched PyEnvironment or TFEnvironment with one action array.

    Returns:
      An environment of the same kind. The TFEnvironment keeps working under jit_compile.

    Raises:
      ValueError: if `env` is neither.
    """
    if isinstance(env, HalvedEnvironment):
        return HalvedEnvironment(_PyHistory(half) for half in env.halves)
    if isinstance(env, py_environment.PyEnvironment):
        return _PyHistory(env)
    if isinstance(env, tf_environment.TFEnvironment):
        return _TFHistory(env)
    raise ValueError(f"env must be a PyEnvironment or a TFEnvironment, got {type(env).__name__}.")


class _PyHistory(wrappers.PyEnvironmentBaseWrapper):
    def observation_spec(self):
        return {
            "observation": self._env.observation_spec(),
            "last_reward": array_spec.ArraySpec((), np.float32, name="last_reward"),
            "last_action": self._env.action_spec(),
        }

    def _reset(self):
        time_step = self._env.reset()
        spec = self._env.action_spec()
        return _extended(time_step, np.zeros((*time_step.step_type.shape, *spec.shape), spec.dtype))

    def _step(self, action):
        return self._with_action(self._env.step(action), action)

    def step_async(self, action):
        """Begins a step, if the environment can do so; `step_wait` must follow."""
        self._action = action
        self._env.step_async(action)

    def step_wait(self):
        """Ends the step begun with `step_async`."""
        self._current_time_step = self._with_action(self._env.step_wait(), self._action)
        return self._current_time_step

    def _with_action(self, time_step, action):
        action = np.array(action, self._env.action_spec().dtype)
        action[time_step.step_type == ts.StepType.FIRST] = 0
        return _extended(time_step, action)


class _TFHistory(tf_wrappers.TFEnvironmentBaseWrapper):
    def __init__(self, env):
        super().__init__(env)
        spec = env.action_spec()
        self._time_step_spec = _extended(env.time_step_spec(), spec)
        self._time_step_spec.observation["last_reward"] = tf.TensorSpec((), tf.float32, name="last_reward")
        self._last_action = tf.Variable(tf.zeros((env.batch_size, *spec.shape), spec.dtype), trainable=False)

    @property
    def variables(self):
        return (*getattr(self._env, "variables", ()), self._last_action)

    def time_step_spec(self):
        return self._time_step_spec

    def observation_spec(self):
        return self._time_step_spec.observation

    def _current_time_step(self):
        return _extended(self._env.current_time_step(), tf.identity(self._last_action))

    def _reset(self):
        time_step = self._env.reset()
        self._last_action.assign(tf.zeros_like(self._last_action))
        return _extended(time_step, tf.identity(self._last_action))

    def _step(self, action):
        time_step = self._env.step(action)
        first = tf.reshape(time_step.is_first(), [-1] + [1] * (self._last_action.shape.rank - 1))
        last_action = tf.where(first, tf.zeros_like(self._last_action), tf.cast(action, self._last_action.dtype))
        self._last_action.assign(last_action)
        return _extended(time_step, last_action)


def _extended(time_step, last_action):
    return time_step._replace(
        observation={
            "observation": time_step.observation,
            "last_reward": time_step.reward,
            "last_action": last_action,
        }
    )
