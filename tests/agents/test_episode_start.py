"""Where an episode starts no part sees a last action: what the frame holds has no effect, and it is no action 0."""

import made
import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl import environments
from keras_rtrl._keras import keras
from keras_rtrl.agents import (
    PPOConfig,
    R2ACAgent,
    R2ACConfig,
    RTRLPPOAgent,
    StreamACAgent,
    StreamACConfig,
    TDLambdaAgent,
    TDLambdaConfig,
)
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train.export import PolicyModule

FIRST, MID = 0, 1
SPECS = {
    "choice": tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2),
    "choices": tensor_spec.BoundedTensorSpec([2], tf.int64, [0, 0], [1, 2]),
}


def make_network(actions, core="elstm", gradient="rtrl"):
    keras.utils.set_random_seed(3)
    network = ActorCriticNetwork(
        made.history(actions, 2), actions, encoder_units=(), core=core, units=4, gradient=gradient
    )
    network.create_variables()
    return network


def make_frames(network, step_type, last_action):
    """[1, 2]: a frame of the step type and the last action, and a MID frame after action 0, or the other way round."""
    actions = network.actions
    zeros = made.experience([[step_type, MID]], network.input_tensor_spec, actions.spec, actions.info_spec())
    frames = tf.nest.map_structure(tf.constant, zeros)
    last = np.zeros([1, 2, *actions.spec.shape], np.int64)
    last[0, 0] = last_action
    observation = {**frames.observation, "observation": tf.ones([1, 2, 2]), "last_action": tf.constant(last)}
    return frames._replace(observation=observation, reward=tf.ones([1, 2]))


def frame(nest, t=0):
    return tf.nest.map_structure(lambda x: x[:, t], nest)


def acting(network, frames):
    time_step = ts.TimeStep(frames.step_type, frames.reward, frames.discount, frames.observation)
    agent = made.agent(R2ACAgent, network, R2ACConfig())
    state = agent.collect_policy.get_initial_state(1)
    return agent.collect_policy.action(frame(time_step), state).info["logits"]


def exported(network, frames):
    policy = PolicyModule(network)
    out = policy.action(
        step_type=frames.step_type[:, 0], **frame(frames.observation), **policy.initial_state(tf.constant(1))
    )
    return out["logits"]


def r2ac(network, frames):
    return made.agent(R2ACAgent, network, R2ACConfig()).train(frames).loss


def bootstrap_of_r2ac(network, frames):
    """The frame in question is frame T."""
    swapped = tf.nest.map_structure(lambda x: x[:, ::-1], (frames.step_type, frames.observation))
    return r2ac(network, frames._replace(step_type=swapped[0], observation=swapped[1]))


def prepared_by_ppo(network, frames):
    agent = made.agent(RTRLPPOAgent, network, PPOConfig(chunk=1, num_minibatches=1))
    batch, _ = agent.prepare(frames)
    return batch.value


def learnt_by_ppo(network, frames):
    agent = made.agent(RTRLPPOAgent, network, PPOConfig(chunk=1, num_minibatches=1))
    return agent.train(frames).extra.value_loss


def streaming_exact(network, frames):
    return made.agent(StreamACAgent, network, StreamACConfig()).train(frames).extra.value


def streaming_truncated(network, frames):
    network = make_network(network.actions.spec, "gru", "tbptt")
    agent = made.agent(TDLambdaAgent, network, TDLambdaConfig(window=3))
    agent.train(make_frames(network, FIRST, 0))  # before the first frame there was no action either
    return agent.train(frames).extra.prediction


PATHS = [
    acting,
    exported,
    r2ac,
    bootstrap_of_r2ac,
    prepared_by_ppo,
    learnt_by_ppo,
    streaming_exact,
    streaming_truncated,
]


@pytest.mark.parametrize(
    ("path", "actions"),
    [
        *((path, SPECS["choice"]) for path in PATHS),
        *((path, SPECS["choices"]) for path in (acting, r2ac)),
        *(pytest.param(path, SPECS["choices"], marks=pytest.mark.full) for path in PATHS if path not in (acting, r2ac)),
    ],
)
def test_the_start_of_an_episode_is_no_step_after_action_0(path, actions):
    def outcome(step_type, last_action):
        network = make_network(actions)
        return np.array(path(network, make_frames(network, step_type, last_action)))

    start = outcome(FIRST, 0)
    np.testing.assert_array_equal(outcome(FIRST, 1), start)
    steps = [outcome(MID, last_action) for last_action in (0, 1)]
    for step in steps:  # the state is zero both times
        assert np.max(np.abs(step - start)) > 1e-5
    assert np.max(np.abs(steps[0] - steps[1])) > 1e-5


@pytest.mark.parametrize(("name", "options"), [("CartPole-v1", {}), ("TMaze-v0", {"corridor": 2})])
def test_drivers_collect_by_a_policy_that_sees_no_last_action_at_the_start(name, options):
    env = environments.with_history(environments.make(name, num_envs=1, seed=0, **options))
    time_steps, actions = (tensor_spec.from_spec(spec) for spec in (env.time_step_spec(), env.action_spec()))
    keras.utils.set_random_seed(0)
    network = ActorCriticNetwork(time_steps.observation, actions, encoder_units=(), units=4)
    agent = made.agent(R2ACAgent, network, R2ACConfig())
    rollouts = []
    RolloutDriver(env, agent.collect_policy, [rollouts.append], num_steps=100).run()
    (rollout,) = rollouts
    start = tf.equal(rollout.step_type, FIRST)
    assert np.sum(start) > 2
    last_action = rollout.observation["last_action"]
    np.testing.assert_array_equal(last_action[start], 0)
    other = {**rollout.observation, "last_action": tf.where(start, tf.ones_like(last_action), last_action)}
    logits, _, _ = network.unroll(other, start, network.get_initial_carry(1))
    np.testing.assert_allclose(rollout.policy_info["logits"][:, :-1], logits[:, :-1], rtol=1e-4, atol=1e-5)
