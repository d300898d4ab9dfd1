"""Runners of tasks inside the graph: where they learn, and the returns of episodes."""

import types

import numpy as np
import pytest

from keras_rtrl import environments
from keras_rtrl._keras import keras
from keras_rtrl.agents import PPOConfig, R2ACAgent, R2ACConfig, RTRLPPOAgent
from keras_rtrl.agents.policy import ActorCriticPolicy
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.engine import native
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train import runners
from keras_rtrl.train.runners import finished_returns

CONFIGS = {RTRLPPOAgent: PPOConfig(num_epochs=2, num_minibatches=2, chunk=4), R2ACAgent: R2ACConfig()}


def make(kind, core="rtu", **options):
    """(environment, agent) on RepeatFirst, 4 streams."""
    keras.utils.set_random_seed(0)
    env = environments.with_history(environments.make("popgym-RepeatFirstEasy-v0", num_envs=4, seed=1, engine="graph"))
    options = {"units": 6, "encoder_units": (5,), **options}
    network = ActorCriticNetwork(env.observation_spec(), env.action_spec(), core=core, **options)
    optimizer = keras.optimizers.Adam(1e-3, jit_compile=False)
    return env, kind(env.time_step_spec(), env.action_spec(), network, optimizer, num_streams=4, config=CONFIGS[kind])


@pytest.mark.skipif(not native.info()["built"], reason="no native op")
@pytest.mark.parametrize("kind", [RTRLPPOAgent, pytest.param(R2ACAgent, marks=pytest.mark.full)])
def test_learning_inside_and_outside_xla_in_one_call_and_in_two_is_the_same(kind, monkeypatch):
    outcomes = {}
    for much in (0, np.inf):
        monkeypatch.setattr(runners, "MUCH", much)
        env, agent = make(kind)
        assert runners.learns_natively(agent, 32) == (much == 0)
        runner = runners.InGraph(env, agent, 8, 20)
        counters = types.SimpleNamespace(running_returns=[])
        parts = [runner.run(updates, counters) for updates in ((8, 12) if much else (20,))]
        weights = np.concatenate([variable.numpy().ravel() for variable in agent.network.trainable_variables])
        losses = np.concatenate([part.losses for part in parts])
        outcomes[much] = losses, [value for part in parts for value in part.returns], weights
    (losses, returns, weights), (xla_losses, xla_returns, xla_weights) = outcomes.values()
    assert len(returns) > 4
    assert returns == xla_returns
    np.testing.assert_allclose(losses, xla_losses, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(weights, xla_weights, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_overlapping_is_one_thread_that_acts_by_weights_one_update_old(kind):
    def parts():
        keras.utils.set_random_seed(0)
        env = environments.with_history(environments.make("CartPole-v1", num_envs=4, seed=1))
        networks = [
            ActorCriticNetwork(env.observation_spec(), env.action_spec(), core="rtu", units=6, encoder_units=(5,))
            for _ in range(2)
        ]
        arguments = (env.time_step_spec(), env.action_spec(), networks[0], keras.optimizers.Adam(1e-2))
        agent = kind(*arguments, num_streams=4, config=CONFIGS[kind])
        networks[1].create_variables()
        return env, agent, networks[1]

    env, agent, acting = parts()
    runner = runners.make_runner(env, agent, 8, 1, acting)
    outcomes = [runner.run(1, None) for _ in range(6)]
    runner.close()

    env, other, acting = parts()
    kept = []
    generator = other.collect_policy.generator
    policy = ActorCriticPolicy(env.time_step_spec(), env.action_spec(), acting, generator=generator)
    driver = RolloutDriver(env, policy, [kept.append], num_steps=8)
    for update in range(6):
        for mine, newest in zip(acting.variables, other.network.variables, strict=True):
            mine.assign(newest)
        for _ in range(2 if update == 0 else 1):
            driver.run()
        assert len(kept) == 2  # the older one is learnt from now
        np.testing.assert_allclose(outcomes[update].losses[0, 0], other.train(kept.pop(0)).loss, rtol=1e-4, atol=1e-6)
    returns = [value for outcome in outcomes for value in outcome.returns]
    games = [game_return for game_return, _, _ in env.finished_games()]
    assert len(returns) > 3
    assert returns == games[: len(returns)]  # those of the last rollout belong to the next update
    for a, b in zip(agent.network.trainable_variables, other.network.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif(not native.info()["built"], reason="no native op")
def test_large_updates_of_native_cores_are_learned_outside_xla():
    def native_from(**options):
        """The least power of 2 of steps that is learned natively, None if not even 2**40 are."""
        _, agent = make(RTRLPPOAgent, **options)
        return next((n for n in range(40) if runners.learns_natively(agent, 2**n)), None)

    small, large = native_from(), native_from(encoder_units=(500,))
    assert small > large > 0
    for other in (
        {"core": "gru"},
        {"core": "stack"},
        {"core_options": {"implementation": "tf"}},
    ):
        assert native_from(**other) is None


def test_returns_of_episodes_that_span_calls():
    running = [0.0, 10.0]
    rewards = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    ends = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], bool)
    # In the order of time: stream 1 ends first.
    assert finished_returns(rewards, ends, running) == [11.0, 3.0, 7.0]
    assert running == [0.0, 3.0]
    assert finished_returns(np.array([[5.0], [2.0]]), np.array([[0], [1]], bool), running) == [5.0]
    assert running == [5.0, 0.0]
