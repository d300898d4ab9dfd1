"""R2AC among TF-Agents' own drivers, buffers, metrics and savers, and inside one compiled loop."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.drivers import dynamic_episode_driver, dynamic_step_driver
from tf_agents.environments import tf_py_environment
from tf_agents.metrics import tf_metrics
from tf_agents.policies import policy_saver
from tf_agents.replay_buffers import tf_uniform_replay_buffer

from keras_rtrl._keras import keras
from keras_rtrl.agents import R2ACAgent, R2ACConfig
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.environments import make, with_history
from keras_rtrl.networks import ActorCriticNetwork

B, T = 3, 6


def make_agent(env, core="elstm", **options):
    keras.utils.set_random_seed(1)
    network = ActorCriticNetwork(
        env.time_step_spec().observation, env.action_spec(), core=core, units=8, encoder_units=(), **options
    )
    return R2ACAgent(
        env.time_step_spec(),
        env.action_spec(),
        network,
        keras.optimizers.Adam(1e-3),
        num_streams=B,
        config=R2ACConfig(gradient_clipping=1.0),
    )


@pytest.fixture
def cartpole():
    return tf_py_environment.TFPyEnvironment(with_history(make("CartPole-v1", num_envs=B, seed=2)))


def test_dynamic_step_driver_and_replay_buffer_give_train_its_experience(cartpole):
    agent = make_agent(cartpole)
    buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(agent.collect_data_spec, B, max_length=T + 1)
    driver = dynamic_step_driver.DynamicStepDriver(
        cartpole, agent.collect_policy, observers=[buffer.add_batch], num_steps=T * B
    )
    train = tf.function(agent.train)
    time_step, state = driver.run(maximum_iterations=1)  # frame 0 of the first window
    windows = []
    for _ in range(6):
        time_step, state = driver.run(time_step, state, maximum_iterations=T)
        windows.append(buffer.gather_all())
        assert windows[-1].step_type.shape == (B, T + 1)
        assert np.isfinite(train(windows[-1]).loss)
    steps = np.concatenate([window.step_type[:, 1:] for window in windows], axis=1)
    assert (steps == 2).any()  # windows ran over episodes' ends
    for before, after in itertools.pairwise(windows):
        a, b = before.observation["observation"][:, -1], after.observation["observation"][:, 0]
        np.testing.assert_array_equal(a, b)


def test_metrics_and_episode_driver(cartpole):
    agent = make_agent(cartpole)
    average = tf_metrics.AverageReturnMetric(batch_size=B)
    length = tf_metrics.AverageEpisodeLengthMetric(batch_size=B)
    dynamic_episode_driver.DynamicEpisodeDriver(
        cartpole, agent.policy, observers=[average, length], num_episodes=4
    ).run()
    assert average.result() == length.result() >= 4  # CartPole pays 1 a step


LOAD = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_probability
policy = tf.saved_model.load(sys.argv[1])
frames = np.load(sys.argv[2])
states = policy.signatures["get_initial_state"](batch_size=tf.constant(3))
assert not any(name.startswith(("tf_agents", "keras_rtrl")) for name in sys.modules)
for t in range(4):
    inputs = {name: tf.constant(frames[name][:, t]) for name in frames.files}
    inputs |= {"1/" + name.removeprefix("state/"): state for name, state in states.items()}
    step = policy.signatures["action"](**inputs)
    states = {name: value for name, value in step.items() if name.startswith("state/")}
    print(*step["action"].numpy(), *step["info/logits"].numpy().ravel())
"""


def test_policy_saver_in_a_fresh_process(cartpole, tmp_path):
    agent = make_agent(cartpole, "rtu")
    rollouts = []
    RolloutDriver(cartpole, agent.policy, [rollouts.append], num_steps=4).run()
    policy_saver.PolicySaver(agent.policy).save(str(tmp_path / "policy"))
    rollout = rollouts[0]
    frames = {f"0/observation/{name}": value for name, value in rollout.observation.items()}
    frames |= {"0/step_type": rollout.step_type, "0/reward": rollout.reward, "0/discount": rollout.discount}
    np.savez(tmp_path / "frames.npz", **{name: value.numpy() for name, value in frames.items()})

    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "policy", tmp_path / "frames.npz"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = np.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])
    assert lines.shape == (4, B + 2 * B)
    np.testing.assert_array_equal(lines[:, :B].T, rollout.action[:, :4])
    logits = lines[:, B:].reshape(4, B, 2).transpose(1, 0, 2)
    np.testing.assert_allclose(logits, rollout.policy_info["logits"][:, :4], rtol=1e-4, atol=1e-5)


@pytest.mark.full  # what the command line does with the T-maze, by hand
@pytest.mark.parametrize("core", ["elstm", "rtu"])
def test_collecting_and_training_in_one_compiled_function(core):
    """Equal to driver.run and agent.train called one after the other in eager mode."""

    def make_loop():
        env = with_history(make("TMaze-v0", num_envs=B, seed=4, corridor=2))
        agent = make_agent(env, core)
        return env, agent, RolloutDriver(env, agent.collect_policy, num_steps=T)

    env, agent, driver = make_loop()

    @tf.function(jit_compile=True)
    def update(time_step, state):
        rollout, time_step, state = driver.rollout(time_step, state)
        return agent.train(rollout), time_step, state

    time_step, state = env.current_time_step(), agent.collect_policy.get_initial_state(B)
    losses = []
    for _ in range(4):
        info, time_step, state = update(time_step, state)
        losses.append(info.loss)

    _, eager_agent, eager_driver = make_loop()
    expected = []
    eager_driver.observers.append(lambda rollout: expected.append(eager_agent.train(rollout).loss))
    for _ in range(4):
        eager_driver.run()
    np.testing.assert_allclose(losses, expected, rtol=1e-3, atol=1e-4)
    for a, b in zip(tf.nest.flatten(agent.carry), tf.nest.flatten(eager_agent.carry), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)
        assert np.abs(a).max() > 0
