"""The gradient of an agent's loss is that of the whole history: float64 finite differences, on a carry with traces.

Two rollouts with an episode's end inside; the loss is on the second alone. Its targets are constants, the state that it
begins with is not: that follows from the parameters through the first.
"""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl._keras import keras
from keras_rtrl.agents import PPOConfig, R2ACAgent, R2ACConfig, RTRLPPOAgent
from keras_rtrl.agents.r2ac import losses
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.testing.finite_differences import along, numeric

B, T = 2, 6
ONE = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
VECTOR = tensor_spec.BoundedTensorSpec([2], tf.int64, [0, 0], [1, 2])
FLOATS = tensor_spec.BoundedTensorSpec([2], tf.float64, -1, 1)


@pytest.fixture(autouse=True)
def _float64():
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


def history_of(actions, width=3):
    return {
        "observation": tf.TensorSpec([width], tf.float64),
        "last_reward": tf.TensorSpec([], tf.float32),
        "last_action": actions,
    }


def make_network(actions, core, gradient="rtrl", units=4, encoder_units=(), width=3, **options):
    keras.utils.set_random_seed(4)
    options = {"core": core, "units": units, "gradient": gradient, "encoder_units": encoder_units, **options}
    network = ActorCriticNetwork(history_of(actions, width), actions, **options)
    network.create_variables()
    for variable in network.trainable_variables:  # no bias, no log standard deviation at 0, where faults hide
        variable.assign_add(0.1 * tf.random.normal(variable.shape, dtype=tf.float64))
    return network


def make_rollout(network, actions, seed):
    rng = np.random.default_rng(seed)
    shape = (B, T + 1)
    step_type = np.full(shape, 1)
    step_type[1, 2:4] = 2, 0  # an episode's end and another's start, in the middle of a chunk
    if actions.dtype.is_floating:
        action = rng.normal(size=(*shape, *actions.shape))
    else:
        action = rng.integers(0, np.broadcast_to(actions.maximum, actions.shape) + 1, (*shape, *actions.shape))
    specs = network.actions.info_spec().items()
    info = {name: tf.constant(0.3 * rng.normal(size=(*shape, *spec.shape))) for name, spec in specs}
    return trajectory.Trajectory(
        step_type=tf.constant(step_type, tf.int32),
        observation={
            "observation": tf.constant(rng.normal(size=(*shape, *network.input_tensor_spec["observation"].shape))),
            "last_reward": tf.constant(rng.normal(size=shape), tf.float32),
            "last_action": tf.constant(action, actions.dtype),
        },
        action=tf.constant(action, actions.dtype),
        policy_info=info,
        next_step_type=tf.constant(np.roll(step_type, -1, 1), tf.int32),
        reward=tf.constant(rng.normal(size=shape), tf.float32),
        discount=tf.constant(np.where(np.roll(step_type, -1, 1) == 2, 0.0, 1.0), tf.float32),
    )


def arguments(network, actions):
    return ts.time_step_spec(network.input_tensor_spec), actions, network


def zero_carry(agent):
    for variable in tf.nest.flatten(agent.carry):
        variable.assign(tf.zeros_like(variable))


def state_of(agent):
    return agent.network.state_of(tf.nest.map_structure(lambda variable: variable.value(), agent.carry))


OTHERS = {"vector": VECTOR, "floats": FLOATS}


def r2ac_gradients(gradient, core, actions=ONE):
    """(analytic, numeric) derivatives along random directions."""
    network = make_network(actions, core, gradient)
    first, second = make_rollout(network, actions, 1), make_rollout(network, actions, 2)
    optimizer = keras.optimizers.SGD(0.0)
    agent = R2ACAgent(
        *arguments(network, actions),
        optimizer,
        num_streams=B,
        config=R2ACConfig(gradient_clipping=None, reward_clipping=None),
    )
    variables = network.trainable_variables

    agent.train(first)
    state = state_of(agent)
    boundary, reset = tf.equal(second.step_type, 2), tf.equal(second.step_type, 0)
    outputs, values, _ = network.unroll(second.observation, reset, state)
    head = network.actions
    rho = head.log_probability(outputs, second.action) - head.log_probability(
        head.from_info(second.policy_info), second.action
    )
    targets = losses.vtrace(
        rho[:, :T],
        0.99 * tf.cast(second.discount[:, :T], tf.float64),
        tf.cast(second.reward[:, :T], tf.float64),
        values[:, :T],
        values[:, T],
        boundary[:, :T],
    )

    def loss():
        zero_carry(agent)
        agent.train(first)  # the learning rate is 0: it moves the carry alone
        outputs, values, _ = network.unroll(second.observation, reset, state_of(agent))
        log_pi, entropy = head.log_probability(outputs, second.action), head.entropy(outputs)
        terms = losses.r2ac_loss(log_pi[:, :T], entropy[:, :T], values[:, :T], targets, boundary[:, :T])
        return terms.policy_loss + 0.5 * terms.value_loss - 0.01 * terms.entropy

    expected, directions = numeric(variables, tf.function(loss, autograph=False))
    zero_carry(agent)
    agent.train(first)
    before = [variable.numpy() for variable in variables]
    optimizer.learning_rate.assign(1.0)
    agent.train(second)
    moved = [b - variable.numpy() for b, variable in zip(before, variables, strict=True)]
    return along(moved, directions), expected, variables


@pytest.mark.parametrize(("core", "actions"), [("elstm", ONE), ("rtu", ONE), ("rtu", FLOATS)])
def test_r2ac(core, actions):
    got, expected, variables = r2ac_gradients("rtrl", core, actions)
    assert len(variables) >= 7
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_r2ac_by_truncated_bptt_differs():
    got, expected, _ = r2ac_gradients("tbptt", "rtu")
    assert np.max(np.abs(got - expected)) > 1e-2 * np.max(np.abs(expected))


def ppo_gradients(gradient, core, actions, **options):
    network = make_network(actions, core, gradient, shared_heads=False, head_units=(3,), **options)
    first, second = make_rollout(network, actions, 1), make_rollout(network, actions, 2)
    config = PPOConfig(
        num_epochs=1,
        num_minibatches=1,
        chunk=3,
        gradient_clipping=None,
        entropy_regularization=0.01,
        normalize_rewards=False,
    )
    agent = RTRLPPOAgent(*arguments(network, actions), keras.optimizers.SGD(0.0), num_streams=B, config=config)
    variables = network.trainable_variables
    agent.train(first)
    batch, _ = agent.prepare(second)

    def loss():
        zero_carry(agent)
        agent.train(first)
        carry = agent.prepare(second)[0].carry  # of each chunk's start, the targets stay as they are
        return agent.batch_loss(batch._replace(carry=carry))[0]

    expected, directions = numeric(variables, tf.function(loss, autograph=False))
    with tf.GradientTape() as tape:
        value = agent.batch_loss(batch)[0]
    got = tape.gradient(value, variables, unconnected_gradients="zero")
    return along([g.numpy() for g in got], directions), expected, variables


@pytest.mark.parametrize(
    ("core", "actions"),
    [
        pytest.param("elstm", ONE, id="elstm-one"),
        *(pytest.param("elstm", a, id=f"elstm-{i}", marks=pytest.mark.full) for i, a in OTHERS.items()),
        pytest.param("rtu", ONE, id="rtu-one", marks=pytest.mark.full),
        pytest.param("rtu", FLOATS, id="rtu-floats"),
        *(pytest.param("rtu", a, id=f"rtu-{i}", marks=pytest.mark.full) for i, a in OTHERS.items() if a is not FLOATS),
    ],
)
def test_ppo(core, actions):
    got, expected, variables = ppo_gradients("rtrl", core, actions)
    assert len(variables) >= 9
    assert np.all(np.abs(expected) > 1e-10)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_ppo_at_the_papers_size():
    smooth = {"activation": "tanh"}  # among so many units a finite step crosses a relu's kink
    sizes = {"width": 64, "units": 192, "use_last_action": False, "use_last_reward": False}
    got, expected, _ = ppo_gradients("rtrl", "rtu", FLOATS, core_options=smooth, **sizes)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gradient", ["tbptt", pytest.param("instant", marks=pytest.mark.full)])
def test_ppo_by_other_gradients_differs(gradient):
    got, expected, _ = ppo_gradients(gradient, "rtu", ONE)
    assert np.max(np.abs(got - expected)) > 1e-2 * np.max(np.abs(expected))


@pytest.mark.parametrize("kind", [R2ACAgent, RTRLPPOAgent])
def test_cotangents_at_the_core_give_the_cores_gradient(kind):
    network = make_network(ONE, "rtu")
    first, second = make_rollout(network, ONE, 1), make_rollout(network, ONE, 2)
    one_step = {"num_epochs": 1, "num_minibatches": 1, "chunk": 3, "normalize_rewards": False}
    config = kind.config_class(gradient_clipping=None, **(one_step if kind is RTRLPPOAgent else {}))
    optimizer = keras.optimizers.SGD(0.0)
    agent = kind(*arguments(network, ONE), optimizer, num_streams=B, config=config)
    agent.train(first)
    carry = tf.nest.map_structure(tf.identity, agent.carry)
    cotangents = agent.core_cotangents(second, carry)
    reset = tf.equal(second.step_type, 0)
    with tf.GradientTape() as tape:
        y, _ = network.core(network.encode(second.observation, reset)[:, :T], reset[:, :T], carry)
        product = tf.reduce_sum(y * cotangents)
    expected = tape.gradient(product, network.core_variables)

    before = [variable.numpy() for variable in network.core_variables]
    optimizer.learning_rate.assign(1.0)
    agent.train(second)
    for variable, b, e in zip(network.core_variables, before, expected, strict=True):
        np.testing.assert_allclose(b - variable.numpy(), e, rtol=1e-8, atol=1e-10)
