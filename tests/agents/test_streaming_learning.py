"""What streaming agents learn in minutes: by RTRL a memory that the instantaneous gradient does not make."""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl import environments
from keras_rtrl._keras import keras
from keras_rtrl.agents import ObGD, StreamACAgent, StreamACConfig, TDLambdaAgent, TDLambdaConfig
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train.optimizers import Adam
from keras_rtrl.train.runners import make_runner


class Counters:
    def __init__(self):
        self.running_returns, self.unscored = [], []


def outcomes(task, agent_class, config, optimizer, steps, gradient, seed=0, **core):
    """Outcomes of 20,000 steps each."""
    keras.utils.set_random_seed(seed)
    name, options = task
    env = environments.with_history(environments.make(name, num_envs=1, seed=seed, **options))
    spec, actions = tensor_spec.from_spec(env.time_step_spec()), tensor_spec.from_spec(env.action_spec())
    network = ActorCriticNetwork(
        spec.observation,
        actions,
        core="rtu",
        gradient=gradient,
        encoder_units=(),
        use_last_action=False,
        use_last_reward=False,
        **core,
    )
    counter = tf.Variable(0, dtype=tf.int64)
    agent = agent_class(spec, actions, network, optimizer, num_streams=1, config=config, train_step_counter=counter)
    runner, counters = make_runner(env, agent, 1, 20_000), Counters()
    return [runner.run(20_000, counters) for _ in range(steps // 20_000)]


@pytest.mark.slow
def test_memory_chain():
    def right_choices(gradient):
        returns = outcomes(
            ("MemoryChain-v0", {"length": 8}),
            StreamACAgent,
            StreamACConfig(lambda_value=0.0),
            ObGD(0.01),
            400_000,
            gradient,
            units=8,
            core_options={"r_max": 0.5},
        )
        return (np.mean(np.concatenate([outcome.returns for outcome in returns])[-1000:]) + 1) / 2

    assert right_choices("rtrl") > 0.95
    assert right_choices("instant") < 0.6


@pytest.mark.slow
def test_trace_conditioning():
    def error(gradient):
        errors = outcomes(
            ("TraceConditioning-v0", {}),
            TDLambdaAgent,
            TDLambdaConfig(),
            Adam(1e-3),
            200_000,
            gradient,
            units=20,
            core_options={"recurrence": "nonlinear", "activation": "tanh"},
        )
        return np.concatenate([outcome.errors for outcome in errors])[-20_000:].mean(axis=0)

    exact, mean_predictor, floor = error("rtrl")
    assert floor < exact < 0.034
    assert error("instant")[0] > 0.8 * mean_predictor
