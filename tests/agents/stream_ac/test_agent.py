"""What is StreamAC's own: bounded steps for actor and critic, scaled rewards, continuous actions."""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl._keras import keras
from keras_rtrl.agents import ObGD, StreamACAgent, StreamACConfig
from keras_rtrl.networks import ActorCriticNetwork

FIRST, MID, LAST = 0, 1, 2
ONE = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
VECTOR = tensor_spec.BoundedTensorSpec([2], tf.int64, [0, 0], [1, 2])
FLOATS = tensor_spec.BoundedTensorSpec([2], tf.float32, -1, 1)


def make_agent(optimizer, actions=ONE, **config):
    keras.utils.set_random_seed(1)
    history = {
        "observation": tf.TensorSpec([3], tf.float32),
        "last_reward": tf.TensorSpec([], tf.float32),
        "last_action": actions,
    }
    network = ActorCriticNetwork(history, actions, core="rtu", units=4, encoder_units=(5,))
    counter = tf.Variable(0, dtype=tf.int64)
    settings = {"num_streams": 1, "config": StreamACConfig(**config), "train_step_counter": counter}
    return StreamACAgent(ts.time_step_spec(history), actions, network, optimizer, **settings)


def make_transition(agent, seed=0, step_type=(MID, MID), reward=1.0, discount=1.0):
    rng = np.random.default_rng(seed)
    network = agent.network
    zeros = tf.nest.map_structure(lambda s: tf.zeros([1, 2, *s.shape], s.dtype), network.input_tensor_spec)
    action = tf.nest.map_structure(lambda s: tf.zeros([1, 2, *s.shape], s.dtype), agent.action_spec)
    info = network.actions.info_spec()
    return trajectory.Trajectory(
        step_type=tf.constant([step_type], tf.int32),
        observation={**zeros, "observation": tf.constant(rng.normal(size=(1, 2, 3)), tf.float32)},
        action=action,
        policy_info=tf.nest.map_structure(lambda s: tf.zeros([1, 2, *s.shape], s.dtype), info),
        next_step_type=tf.constant([[step_type[1], 0]], tf.int32),
        reward=tf.constant([[reward, 0.0]], tf.float32),
        discount=tf.constant([[discount, 0.0]], tf.float32),
    )


def test_obgd_bounds_actor_and_critic_apart():
    agent = make_agent(ObGD(0.7, critic_kappa=2.0, actor_kappa=3.0), normalize_rewards=False, value_pred_loss_coef=0.5)
    variables = agent.network.trainable_variables
    for seed in range(3):
        before = [variable.numpy() for variable in variables]
        delta = float(agent.train(make_transition(agent, seed, reward=2.0)).extra.td_error)
        traces = {name: [part.numpy() for part in parts] for name, parts in agent.eligibility.items()}
        alpha = {}
        for name, kappa in (("critic", 2.0), ("actor", 3.0)):
            norm = sum(np.abs(part).sum() for part in traces[name])
            alpha[name] = 0.7 / max(1.0, 0.7 * kappa * max(abs(delta), 1.0) * norm)
        assert max(alpha.values()) < 0.7
        for b, variable, z_v, z_pi in zip(before, variables, traces["critic"], traces["actor"], strict=True):
            wanted = b + delta * (0.5 * alpha["critic"] * z_v + alpha["actor"] * z_pi)
            np.testing.assert_allclose(variable, wanted, rtol=1e-5, atol=1e-6)


def test_entropy_has_the_sign_of_the_td_error():
    traces = {}
    for cost in (0.0, 0.5):
        for reward in (-3.0, 3.0):
            agent = make_agent(keras.optimizers.SGD(0.0), normalize_rewards=False, entropy_regularization=cost)
            agent.train(make_transition(agent, reward=reward))
            traces[cost, reward] = np.concatenate([part.numpy().ravel() for part in agent.eligibility["actor"]])
    np.testing.assert_allclose(traces[0.0, -3.0], traces[0.0, 3.0])
    up, down = (traces[0.5, reward] - traces[0.0, reward] for reward in (3.0, -3.0))
    np.testing.assert_allclose(up, -down, atol=1e-6)
    assert np.max(np.abs(up)) > 1e-3


def test_rewards_are_scaled_by_the_returns_deviation():
    scaled, plain = (make_agent(keras.optimizers.SGD(0.0), normalize_rewards=s, gamma=0.5) for s in (True, False))
    returns = []
    for seed, reward in enumerate([10.0, -4.0, 7.0]):
        infos = [agent.train(make_transition(agent, seed, reward=reward)) for agent in (scaled, plain)]
        returns.append(reward + (0.5 * returns[-1] if returns else 0.0))
        scale = np.std(returns) if len(returns) > 1 else 1.0
        wanted = float(infos[1].extra.td_error) - reward + reward / scale
        np.testing.assert_allclose(float(infos[0].extra.td_error), wanted, rtol=1e-4)
    assert float(scaled.reward_scaler.scale) == pytest.approx(np.std(returns), rel=1e-5)
    assert plain.reward_scaler is None


@pytest.mark.parametrize("actions", [VECTOR, FLOATS], ids=["vector", "floats"])
def test_other_actions(actions):
    agent = make_agent(ObGD(), actions)
    variables = agent.network.trainable_variables
    before = [variable.numpy() for variable in variables]
    for seed in range(3):
        info = agent.train(make_transition(agent, seed))
        assert np.isfinite(info.loss)
    for b, variable in zip(before, variables, strict=True):
        assert np.any(b != variable.numpy()), variable.name
