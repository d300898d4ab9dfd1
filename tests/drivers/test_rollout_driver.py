"""The rollout driver against loops stepped by hand."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.environments import tf_py_environment
from tf_agents.policies import random_tf_policy, tf_policy
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import policy_step
from tf_agents.trajectories import time_step as ts

from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.environments import make, with_history

STEPS = 7


class CountingPolicy(tf_policy.TFPolicy):
    """Deterministic: counts its calls since FIRST in its state, and acts by the count."""

    def __init__(self, env):
        spec = tf.TensorSpec([], tf.int32, name="count")
        time_step_spec, action_spec = _tensor_specs(env)
        super().__init__(time_step_spec, action_spec, (spec,), info_spec={"count": spec})

    def _action(self, time_step, policy_state, seed=None):
        count = policy_state[0] + 1
        action = tf.cast(count % (self.action_spec.maximum + 1), self.action_spec.dtype)
        return policy_step.PolicyStep(action, (count,), {"count": count})

    def _distribution(self, time_step, policy_state):
        raise NotImplementedError


def _tensor_specs(env):
    return tensor_spec.from_spec(env.time_step_spec()), tensor_spec.from_spec(env.action_spec())


def make_env(kind):
    """Batches of short episodes: `py`, the same in `workers`, seen by TensorFlow as `tf_py`, and in-graph as `tf`."""
    if kind == "tf":
        return with_history(make("TMaze-v0", num_envs=3, seed=5, corridor=2))
    env = with_history(make("CartPole-v1", num_envs=3, seed=5, workers=2 if kind == "workers" else 0))
    return tf_py_environment.TFPyEnvironment(env) if kind == "tf_py" else env


KINDS = ["py", "workers", "tf_py", "tf"]


def by_hand(env, policy, frames):
    """Lists of the time steps and the action steps of `frames` steps from a fresh environment."""
    time_step, state = env.reset(), policy.get_initial_state(3)
    time_steps, action_steps = [], []
    for _ in range(frames):
        tensors = tf.nest.map_structure(tf.convert_to_tensor, time_step)
        action_step = policy.action(tensors, state)
        time_steps.append(tf.nest.map_structure(np.array, time_step))
        action_steps.append(tf.nest.map_structure(np.array, action_step))
        action = action_step.action if tf.is_tensor(time_step.reward) else action_step.action.numpy()
        time_step, state = env.step(action), action_step.state
    time_steps.append(tf.nest.map_structure(np.array, time_step))
    return time_steps, action_steps


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_equal_a_hand_stepped_loop_and_overlap_by_one_frame(kind):
    env = make_env(kind)
    rollouts = []
    driver = RolloutDriver(env, CountingPolicy(env), observers=[rollouts.append], num_steps=STEPS)
    for _ in range(5):
        driver.run()
    other = make_env("py" if kind == "workers" else kind)
    time_steps, action_steps = by_hand(other, CountingPolicy(other), 5 * STEPS)
    assert any((step.step_type == ts.StepType.LAST).any() for step in time_steps[:-1])

    for i, rollout in enumerate(rollouts):
        assert rollout.step_type.shape == (3, STEPS + 1)
        for t in range(STEPS + 1):
            frame = tf.nest.map_structure(lambda x, t=t: x[:, t].numpy(), rollout)
            step = time_steps[i * STEPS + t]
            np.testing.assert_array_equal(frame.step_type, step.step_type)
            tf.nest.map_structure(np.testing.assert_array_equal, dict(frame.observation), dict(step.observation))
            if t == STEPS:
                continue
            action_step, next_step = action_steps[i * STEPS + t], time_steps[i * STEPS + t + 1]
            np.testing.assert_array_equal(frame.action, action_step.action)
            np.testing.assert_array_equal(frame.policy_info["count"], action_step.info["count"])
            np.testing.assert_array_equal(frame.next_step_type, next_step.step_type)
            np.testing.assert_array_equal(frame.reward, next_step.reward)
            np.testing.assert_array_equal(frame.discount, next_step.discount)
    for before, after in itertools.pairwise(rollouts):
        np.testing.assert_array_equal(before.step_type[:, -1], after.step_type[:, 0])
        np.testing.assert_array_equal(before.observation["observation"][:, -1], after.observation["observation"][:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_frame_t_holds_an_observation_and_a_step_type_only(kind):
    env = make_env(kind)
    rollouts = []
    RolloutDriver(env, CountingPolicy(env), [rollouts.append], num_steps=STEPS).run()
    last = tf.nest.map_structure(lambda x: x[:, -1].numpy(), rollouts[0])
    for part in (last.action, last.policy_info["count"], last.next_step_type, last.reward, last.discount):
        assert not part.any()
    assert np.abs(last.observation["observation"]).max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_run_gives_goes_on_where_it_ended(kind):
    env, other = make_env(kind), make_env(kind)
    rollouts, explicit = [], []
    driver = RolloutDriver(env, CountingPolicy(env), [rollouts.append], num_steps=STEPS)
    driver.run()
    driver.run()
    explicit_driver = RolloutDriver(other, CountingPolicy(other), [explicit.append], num_steps=STEPS)
    explicit_driver.run(*explicit_driver.run())
    for a, b in zip(rollouts, explicit, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, tf.nest.flatten(a), tf.nest.flatten(b))


def test_observers_keep_what_they_were_given():
    env = make_env("py")
    rollouts = []
    driver = RolloutDriver(env, CountingPolicy(env), [rollouts.append], num_steps=STEPS)
    driver.run()
    before = tf.nest.map_structure(lambda x: np.array(x, copy=True), rollouts[0])
    driver.run()
    tf.nest.map_structure(np.testing.assert_array_equal, tf.nest.flatten(before), tf.nest.flatten(rollouts[0]))


def test_one_half_steps_while_the_policy_acts_for_the_other(monkeypatch):
    env = make_env("workers")
    calls = []
    for i, half in enumerate(env.halves):
        for name in ("step_async", "step_wait"):
            method = getattr(half, name)
            monkeypatch.setattr(half, name, lambda *x, i=i, name=name, f=method: (calls.append((name, i)), f(*x))[1])
    RolloutDriver(env, CountingPolicy(env), num_steps=2).run()
    assert calls == [
        *(("step_async", 0), ("step_async", 1)),
        *(("step_wait", 0), ("step_async", 0), ("step_wait", 1), ("step_async", 1)),
        *(("step_wait", 0), ("step_wait", 1)),
    ]


def test_rollout_inside_an_outer_compiled_function():
    env, other = make_env("tf"), make_env("tf")
    rollouts = []
    RolloutDriver(other, CountingPolicy(other), [rollouts.append], num_steps=STEPS).run()
    driver = RolloutDriver(env, CountingPolicy(env), num_steps=STEPS)
    compiled = tf.function(driver.rollout, jit_compile=True, autograph=False)
    state = driver.policy.get_initial_state(3)
    rollout, time_step, state = compiled(env.current_time_step(), state)
    tf.nest.map_structure(np.testing.assert_array_equal, tf.nest.flatten(rollout), tf.nest.flatten(rollouts[0]))
    again, _, _ = compiled(time_step, state)
    np.testing.assert_array_equal(again.observation["observation"][:, 0], rollout.observation["observation"][:, -1])


def test_a_policy_without_state():
    env = make_env("tf_py")
    policy = random_tf_policy.RandomTFPolicy(*_tensor_specs(env))
    rollouts = []
    _, state = RolloutDriver(env, policy, [rollouts.append], num_steps=2).run()
    assert state == ()
    assert rollouts[0].action.shape == (3, 3)


class LookingPolicy(CountingPolicy):
    """As CountingPolicy, but one that reads the observation."""

    def _action(self, time_step, policy_state, seed=None):
        tf.debugging.assert_all_finite(time_step.observation["observation"] * 2, "observation")
        return super()._action(time_step, policy_state, seed)


def test_an_observation_that_changes_its_dtype(monkeypatch):
    env = make_env("py")
    driver = RolloutDriver(env, LookingPolicy(env), num_steps=2)
    driver.run()
    step = type(env)._step

    def in_float64(self, action):
        time_step = step(self, action)
        observation = time_step.observation
        return time_step._replace(observation={**observation, "observation": observation["observation"].astype(float)})

    monkeypatch.setattr(type(env), "_step", in_float64)
    with pytest.raises(TypeError, match="env gave observation of float64, its spec is float32"):
        driver.run()


def test_bad_arguments():
    env = make_env("py")
    policy = CountingPolicy(env)
    for bad in (0, 2.5, None, "a"):
        with pytest.raises(ValueError, match="num_steps"):
            RolloutDriver(env, policy, num_steps=bad)
    with pytest.raises(TypeError, match="PyEnvironment or a TFEnvironment"):
        RolloutDriver("CartPole", policy, num_steps=1)
    with pytest.raises(TypeError, match="rollout"):
        RolloutDriver(env, policy, num_steps=1).rollout(None, None)
