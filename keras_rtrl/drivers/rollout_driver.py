"""A driver that gives whole rollouts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tf_agents.drivers import driver
from tf_agents.environments import py_environment, tf_environment
from tf_agents.policies import tf_policy
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory
from tf_agents.typing import types

from keras_rtrl._checks import fits_memory, shown, whole_number
from keras_rtrl.environments.halves import HalvedEnvironment, joined


class RolloutDriver(driver.Driver):
    """Steps a batched environment T times a call and gives each observer one Trajectory [B, T + 1].

    Frame t holds what TF-Agents' `from_transition` puts there: step type, observation, action and policy info of time
    step t; step type, reward and discount of time step t + 1. Of frame T only observation and step_type mean
    anything, the rest is zero; the next rollout begins with it as its frame 0. Frames where a new episode starts
    (LAST to FIRST) count as any other. The two halves of a HalvedEnvironment are stepped in turn: while the policy acts
    for one, the other steps.
    """

    def __init__(
        self,
        env: py_environment.PyEnvironment | tf_environment.TFEnvironment,
        policy: tf_policy.TFPolicy,
        observers: Sequence[Callable[[trajectory.Trajectory], Any]] | None = None,
        *,
        num_steps: int,
    ):
        """Creates the driver.

        Args:
          env: a batched PyEnvironment, or a TFEnvironment.
          policy: a TFPolicy.
          observers: None, or a list of callables of one Trajectory of tensors [B, T + 1, ...], each theirs to keep.
          num_steps: T, steps of the batched environment a call.

        Raises:
          ValueError: num_steps that is no whole number of at least 1 or for which there is no memory, an environment
            that is not batched.
          TypeError: an environment of neither kind, a policy that is no TFPolicy, observers that cannot be called.
        """
        if not isinstance(env, (tf_environment.TFEnvironment, py_environment.PyEnvironment)):
            raise TypeError(f"env must be a PyEnvironment or a TFEnvironment, got {shown(env)}")
        if not isinstance(policy, tf_policy.TFPolicy):
            raise TypeError(f"policy must be a TFPolicy, such as an agent's collect_policy, got {shown(policy)}")
        num_steps = whole_number("num_steps", num_steps)
        observers = [] if observers is None else observers
        if not isinstance(observers, (list, tuple)) or not all(callable(observer) for observer in observers):
            raise TypeError(f"observers must be a list of callables of one Trajectory, got {shown(observers)}")
        frame = sum(spec.shape.num_elements() * spec.dtype.size for spec in tf.nest.flatten(policy.trajectory_spec))
        fits_memory(f"num_steps={num_steps}: a rollout", (env.batch_size or 1) * (num_steps + 1) * frame)
        super().__init__(env, policy, observers=list(observers))
        self._num_steps = num_steps
        self._time_step = None
        self._policy_state = None
        if isinstance(env, tf_environment.TFEnvironment):
            self._rollout_fn = tf.function(self.rollout)
            self._buffers = None
        else:
            if not env.batched:
                raise ValueError("env must be batched: wrap it in tf_agents.environments.BatchedPyEnvironment")
            self._actions = {}  # the policy's action as one operation, by the number of streams
            if isinstance(env, HalvedEnvironment):
                self._parts = tuple(zip(env.halves, env.rows, strict=True))
            else:
                self._parts = ((_InTurn(env), slice(None)),)
            self._buffers = tf.nest.map_structure(
                lambda spec: np.zeros([env.batch_size, num_steps + 1, *spec.shape], spec.dtype.as_numpy_dtype),
                policy.trajectory_spec,
            )

    @property
    def num_steps(self) -> int:
        """T, steps of the batched environment a call."""
        return self._num_steps

    def run(
        self, time_step: ts.TimeStep | None = None, policy_state: types.NestedTensor | None = None
    ) -> tuple[ts.TimeStep, types.NestedTensor]:
        """Makes one rollout and gives it to the observers.

        Args:
          time_step: TimeStep to begin with; None goes on from where the last call ended (at first, from the
            environment's current time step).
          policy_state: state of the policy before that time step; None goes on from where the last call ended if
            time_step is None too, and is the initial state at first and with a given time_step.

        Returns:
          (time_step, policy_state) after the rollout, arguments of the next call.
        """
        time_step, policy_state = self._start(time_step, policy_state)
        if self._buffers is None:
            rollout, time_step, policy_state = self._rollout_fn(time_step, policy_state)
        else:
            rollout, time_step, policy_state = self._rollout_py(time_step, policy_state)
        if tf.executing_eagerly():  # tensors of an outer function must not outlive it
            self._time_step, self._policy_state = time_step, policy_state
        for observer in self.observers:
            observer(rollout)
        return time_step, policy_state

    def rollout(
        self, time_step: ts.TimeStep, policy_state: types.NestedTensor
    ) -> tuple[trajectory.Trajectory, ts.TimeStep, types.NestedTensor]:
        """One rollout as graph operations; the observers are not called.

        For loops that compile collecting and training into one tf.function (also with jit_compile=True, if the
        environment can); TFEnvironment only.

        Args:
          time_step: TimeStep of tensors [B, ...] to begin with.
          policy_state: state of the policy before that time step.

        Returns:
          (Trajectory [B, T + 1, ...], time_step, policy_state).

        Raises:
          TypeError: the environment is a PyEnvironment.
        """
        if self._buffers is not None:
            raise TypeError("rollout() needs a TFEnvironment; use run() with a PyEnvironment")

        def body(t, time_step, policy_state, arrays):
            action_step = self.policy.action(time_step, policy_state)
            next_time_step = self.env.step(action_step.action)
            frame = trajectory.Trajectory(
                step_type=time_step.step_type,
                observation=time_step.observation,
                action=action_step.action,
                policy_info=action_step.info,
                next_step_type=next_time_step.step_type,
                reward=next_time_step.reward,
                discount=next_time_step.discount,
            )
            arrays = [array.write(t, value) for array, value in zip(arrays, tf.nest.flatten(frame), strict=True)]
            return t + 1, next_time_step, action_step.state, arrays

        batch_size = self.env.batch_size
        arrays = [
            tf.TensorArray(spec.dtype, self._num_steps, element_shape=[batch_size, *spec.shape])
            for spec in tf.nest.flatten(self.policy.trajectory_spec)
        ]
        _, time_step, policy_state, arrays = tf.while_loop(
            lambda t, *_: t < self._num_steps,
            body,
            (tf.constant(0), time_step, policy_state, arrays),
            maximum_iterations=self._num_steps,
            parallel_iterations=1,
        )
        frames = [_batch_major(array.stack()) for array in arrays]
        frames = tf.nest.pack_sequence_as(self.policy.trajectory_spec, frames)
        last = tf.nest.map_structure(lambda x: tf.zeros_like(x[:, 0]), frames)
        last = last._replace(step_type=time_step.step_type, observation=time_step.observation)
        rollout = tf.nest.map_structure(lambda x, y: tf.concat([x, y[:, tf.newaxis]], axis=1), frames, last)
        return rollout, time_step, policy_state

    def _start(self, time_step, policy_state):
        if time_step is None:
            time_step = self._time_step if self._time_step is not None else self._current_time_step()
            if policy_state is None:
                policy_state = self._policy_state
        if policy_state is None:
            policy_state = self.policy.get_initial_state(self.env.batch_size)
        policy_state = tf.nest.pack_sequence_as(self.policy.policy_state_spec, tf.nest.flatten(policy_state))
        return time_step, policy_state

    def _current_time_step(self):
        try:
            return self.env.current_time_step()
        except ValueError:  # a PyEnvironment that was never reset has none
            return self.env.reset()

    def _rollout_py(self, time_step, policy_state):
        buffers, spec = self._buffers, self.policy.policy_step_spec
        seen = tf.nest.flatten((buffers.step_type, buffers.observation))
        chosen = tf.nest.flatten((buffers.action, buffers.policy_info))
        followed = tf.nest.flatten((buffers.next_step_type, buffers.reward, buffers.discount))
        states = [tf.nest.flatten(_rows(policy_state, rows)) for _, rows in self._parts]
        time_steps = [_rows(time_step, rows) for _, rows in self._parts]
        num_actions, num_states = len(tf.nest.flatten(spec.action)), len(states[0])
        for t in range(self._num_steps + 1):
            for i, (env, rows) in enumerate(self._parts):
                if t:
                    time_steps[i] = env.step_wait()
                step_type, reward, discount, *observation = tf.nest.flatten(time_steps[i])
                if t:
                    _write(followed, rows, t - 1, [step_type, reward, discount])
                _write(seen, rows, t, [step_type, *observation])
                if t < self._num_steps:
                    outputs = self._act([step_type, reward, discount, *observation, *states[i]])
                    action = [np.asarray(x) for x in outputs[:num_actions]]
                    env.step_async(tf.nest.pack_sequence_as(spec.action, action))
                    states[i] = outputs[num_actions : num_actions + num_states]
                    _write(chosen, rows, t, [*action, *outputs[num_actions + num_states :]])
        _check_frames(buffers)
        time_step = joined(time_steps)
        policy_state = joined([tf.nest.pack_sequence_as(spec.state, state) for state in states])
        # tf.constant copies: the tensors stay as they are when the next call writes the buffers
        return tf.nest.map_structure(tf.constant, buffers), time_step, policy_state

    def _act(self, arguments):
        """Flat action, state and info from a flat time step and state."""
        size = len(arguments[0])
        if size not in self._actions:
            structure = (self.policy.time_step_spec, self.policy.policy_state_spec)
            self._actions[size] = operation(
                lambda *x: self.policy.action(*tf.nest.pack_sequence_as(structure, x)), arguments
            )
        try:
            return self._actions[size](arguments)
        except tf.errors.InvalidArgumentError:
            for spec, value in zip(tf.nest.flatten(self.policy.time_step_spec), arguments, strict=False):
                if value.dtype != spec.dtype:
                    raise TypeError(f"env gave {spec.name} of {value.dtype}, its spec is {spec.dtype.name}") from None
            raise


def operation(function, arguments):
    """`function` as one operation: what a tf.function checks at each call takes longer than a small network.

    Args:
      function: of tensors, gives a nest of tensors.
      arguments: list of arrays or tensors, with the dtypes and shapes of those that it will be called with.

    Returns:
      A function of such a list that gives the flat list of what `function` gives.
    """
    # AutoGraph would convert a policy and its network for seconds, and change nothing
    concrete = tf.function(function, autograph=False).get_concrete_function(*map(tf.convert_to_tensor, arguments))
    captured, dtypes = concrete.captured_inputs, [output.dtype for output in concrete.outputs]
    return lambda given: tf.raw_ops.StatefulPartitionedCall(args=[*given, *captured], Tout=dtypes, f=concrete)


def _check_frames(frames):
    """Raises ValueError for step types and discounts that no environment may give; once a rollout, in NumPy."""
    for name, values, high in (("step_type", frames.step_type, 2), ("discount", frames.discount[:, :-1], 1)):
        beyond = values[(values < 0) | (values > high)]
        if beyond.size:
            raise ValueError(f"env gave a {name} of {beyond[0]}; it must lie in 0..{high}")


class _InTurn:
    """An environment that steps at once, behind the two calls of one that does not."""

    def __init__(self, env):
        self._env = env

    def step_async(self, action):
        self._time_step = self._env.step(action)

    def step_wait(self):
        return self._time_step


def _batch_major(x):
    """[T, B, ...] to [B, T, ...]."""
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])


def _rows(nest, rows):
    return tf.nest.map_structure(lambda x: x[rows], nest)


def _write(buffers, rows, t, values):
    """buffers[rows, t] = values, for lists of arrays."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer[rows, t] = value
