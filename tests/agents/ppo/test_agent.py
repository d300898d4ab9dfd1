"""RTRLPPOAgent: what it stores, refreshes, learns and assigns."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.policies import policy_saver
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl import layers
from keras_rtrl._keras import keras
from keras_rtrl.agents import PPOConfig, RTRLPPOAgent
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.environments import make, with_history
from keras_rtrl.networks import ActorCriticNetwork

B, T = 4, 12
NUMBERS = ["loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "gradient_norm"]


def make_env(**options):
    return with_history(make("TMaze-v0", num_envs=B, seed=4, corridor=3, **options))


def make_agent(env, core="rtu", gradient="rtrl", rate=1e-3, normalize=False, **config):
    keras.utils.set_random_seed(1)
    observations = tensor_spec.from_spec(env.time_step_spec()).observation
    actions = tensor_spec.from_spec(env.action_spec())
    network = ActorCriticNetwork(
        observations,
        actions,
        core=core if isinstance(core, str) else core(),
        units=6 if isinstance(core, str) else None,
        gradient=gradient,
        encoder_units=(),
        normalize_observation=normalize,
    )
    settings = {"num_epochs": 2, "num_minibatches": 2, "chunk": 3, "normalize_rewards": False, **config}
    return RTRLPPOAgent(
        ts.time_step_spec(observations),
        actions,
        network,
        keras.optimizers.Adam(rate),
        num_streams=B,
        config=PPOConfig(**settings),
        train_step_counter=tf.Variable(0, dtype=tf.int64),
    )


@contextlib.contextmanager
def eagerly():
    """Without tf.function: to trace takes longer than so few steps."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def rollouts(env, agent, count, steps=T):
    made = []
    driver = RolloutDriver(env, agent.collect_policy, [made.append], num_steps=steps)
    with eagerly():
        for _ in range(count):
            driver.run()
    return made


def values_of(variables):
    return [variable.numpy() for variable in variables]


def assert_all_close(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def rtrl_stack():
    return layers.RTRLStack([layers.ELSTM(5), layers.RTU(3)])


@pytest.mark.parametrize(
    ("core", "gradient"),
    [
        ("elstm", "rtrl"),
        ("gru", None),
        (rtrl_stack, None),
        pytest.param("rtu", "instant", marks=pytest.mark.full),
        pytest.param("lstm", "tbptt", marks=pytest.mark.full),
        pytest.param("stack", None, marks=pytest.mark.full),
    ],
)
def test_every_core_trains(core, gradient):
    env = make_env()
    agent = make_agent(env, core, gradient)
    before = values_of(agent.network.trainable_variables)
    for rollout in rollouts(env, agent, 2):
        info = agent.train(rollout)
        assert list(agent.loss_names) == NUMBERS
        assert np.all(np.isfinite([info.loss, *info.extra]))
    assert agent.train_step_counter == 2
    assert agent.optimizer.iterations == 2 * agent.config.optimizer_steps == 8
    moved = [np.any(a != b) for a, b in zip(before, values_of(agent.network.trainable_variables), strict=True)]
    assert all(moved)


def test_first_minibatch_has_ratio_one():
    env = make_env()
    agent = make_agent(env)
    first, second = rollouts(env, agent, 2)
    agent.train(first)  # the acting network moved: the second rollout was made before
    info = agent.loss(second)
    assert info.extra.kl > 0
    agent = make_agent(env)
    (rollout,) = rollouts(env, agent, 1)
    info = agent.loss(rollout)
    np.testing.assert_allclose(info.extra.kl, 0, atol=1e-6)
    assert info.extra.clip_fraction == 0


def test_learners_state_is_the_acting_one():
    env = make_env()
    agent = make_agent(env, rate=0.0)
    driver = RolloutDriver(env, agent.collect_policy, [agent.train], num_steps=T)
    for _ in range(3):
        _, state = driver.run()
        np.testing.assert_allclose(agent.carry[0].state, state[0].state, rtol=1e-4, atol=1e-6)
        assert np.abs(state[0].state).max() > 0.1


@pytest.fixture
def float64():
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


@pytest.mark.parametrize("core", ["rtu", pytest.param("elstm", marks=pytest.mark.full)])
def test_refreshed_carry_is_aligned_with_the_stored_one(float64, core):
    env = make_env()
    agent = make_agent(env, core, rate=0.0, chunk=1)
    first, second = rollouts(env, agent, 2)
    agent.train(first)
    stored, end = agent.prepare(second)

    # step by step, from the agent's carry
    network, carry = agent.network, tf.nest.map_structure(tf.convert_to_tensor, agent.carry)
    features = network.encode(second.observation, second.step_type == 0)
    by_step = []
    for t in range(T):
        by_step.append(tf.nest.flatten(carry))
        _, carry = network.core(features[:, t : t + 1], second.step_type[:, t : t + 1] == 0, carry)
    expected = [tf.stack(parts, axis=1) for parts in zip(*by_step, strict=True)]
    expected = [tf.reshape(x, [B * T, *x.shape[2:]]) for x in expected]
    assert_all_close(tf.nest.flatten(stored.carry), expected, rtol=1e-12, atol=1e-14)
    assert_all_close(tf.nest.flatten(end), tf.nest.flatten(carry), rtol=1e-12, atol=1e-14)

    refreshed, _ = agent.prepare(second)  # the parameters are unchanged
    assert_all_close(tf.nest.flatten(refreshed.carry), tf.nest.flatten(stored.carry), rtol=1e-12)
    state = stored.carry[0].state
    state = np.reshape(state, [B, T, *state.shape[1:]])
    assert np.max(np.abs(state[:, 1:] - state[:, :-1])) > 1e-3  # one step on is another carry


def test_stale_and_fresh(float64):
    """With a learning rate of 0 a refresh changes nothing; else each of the two settings does, in the second epoch."""
    env = make_env()
    made = rollouts(env, make_agent(env), 2)

    def trained(stale, rate):
        agent = make_agent(env, rate=rate, stale_gradient=stale[0], stale_target=stale[1], num_epochs=2)
        for rollout in made:
            info = agent.train(rollout)
        return [info.loss, *info.extra], values_of(agent.network.trainable_variables)

    for rate in (0.0, 1e-2):
        other = trained((True, True), rate)
        for stale in ((True, True), (False, True), (True, False), (False, False)):
            one = trained(stale, rate)
            if rate == 0 or stale == (True, True):
                np.testing.assert_allclose(one[0], other[0], rtol=1e-9)
            else:
                assert max(np.max(np.abs(a - b)) for a, b in zip(one[1], other[1], strict=True)) > 1e-8, stale


def test_one_epoch_one_minibatch_is_one_step_of_the_loss():
    env = make_env()
    agent = make_agent(env, num_epochs=1, num_minibatches=1, gradient_clipping=None, value_clipping=None)
    (rollout,) = rollouts(env, agent, 1)
    batch, carry = agent.prepare(rollout)
    with tf.GradientTape() as tape:
        loss, terms = agent.batch_loss(batch)
    variables = agent.network.trainable_variables
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    before = values_of(variables)
    rate = 0.1
    agent.optimizer.learning_rate.assign(rate)
    info = agent.train(rollout)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(info.extra.gradient_norm, tf.linalg.global_norm(gradients), rtol=1e-4)
    assert_all_close(tf.nest.flatten(agent.carry), tf.nest.flatten(carry), rtol=1e-5, atol=1e-6)
    for old, new, g in zip(before, values_of(variables), gradients, strict=True):  # Adam's first step: rate g / |g|
        large = np.abs(g) > 1e-3
        np.testing.assert_allclose((old - new)[large], rate * np.sign(g)[large], rtol=1e-2)
    value = terms.policy_loss + 0.5 * terms.value_loss
    np.testing.assert_allclose(loss, value, rtol=1e-6)


def test_compiled_equals_eager():
    def losses(compiled):
        env = make_env()
        agent = make_agent(env, normalize=True, normalize_rewards=True)
        train = tf.function(agent.train, autograph=False, jit_compile=True) if compiled else agent.train
        made, numbers = [], []
        driver = RolloutDriver(env, agent.collect_policy, [made.append], num_steps=T)
        for _ in range(3):
            with eagerly():
                driver.run()
            numbers.append(train(made[-1]))
        return [[info.loss, *info.extra] for info in numbers]

    np.testing.assert_allclose(losses(True), losses(False), rtol=2e-3, atol=1e-4)


def test_observations_and_rewards_are_normalised_as_they_come():
    env = make_env()
    agent = make_agent(env, normalize=True, normalize_rewards=True)
    made = rollouts(env, agent, 2)
    for rollout in made:
        agent.train(rollout)
    frames = np.concatenate([r.observation["observation"][:, :-1] for r in made], axis=1).reshape(-1, 12)
    normalized = agent.network.encode({**made[0].observation}, made[0].step_type == 0)[:, :-1, :12].numpy()
    deviation = np.sqrt(frames.var(0) + 1e-8)
    expected = np.clip((made[0].observation["observation"][:, :-1] - frames.mean(0)) / deviation, -10, 10)
    np.testing.assert_allclose(normalized, expected, rtol=1e-3, atol=1e-3)

    rewards = np.concatenate([r.reward[:, :-1] for r in made], axis=1)
    ends = np.concatenate([r.step_type[:, :-1] == 2 for r in made], axis=1)
    running, seen = np.zeros(B), []
    for t in range(2 * T):
        running = np.where(ends[:, t], 0.0, 0.99 * running + rewards[:, t])
        seen.extend(running[~ends[:, t]])
    np.testing.assert_allclose(agent.reward_scaler.scale, np.sqrt(np.var(seen) + 1e-8), rtol=1e-6)


@pytest.mark.parametrize("normalize_rewards", [pytest.param(False, marks=pytest.mark.full), True])
def test_clipped_rewards_are_learned_from_as_if_they_had_come(normalize_rewards):
    env = make_env()
    options = {"reward_clipping": 0.5, "normalize_rewards": normalize_rewards}
    (rollout,) = rollouts(env, make_agent(env), 1)
    large = rollout._replace(reward=tf.linspace(-3.0, 3.0, T + 1) * tf.ones_like(rollout.reward))
    small = large._replace(reward=tf.clip_by_value(large.reward, -0.5, 0.5))
    unclipped = make_agent(env, normalize_rewards=normalize_rewards)
    agents = [make_agent(env, **options), make_agent(env, **options), unclipped]
    seen = [agent.train(rewards) for agent, rewards in zip(agents, (large, small, large), strict=True)]
    assert seen[0].extra.value_loss == seen[1].extra.value_loss != seen[2].extra.value_loss


def test_checkpoint_and_policy_hold_the_normalisation(tmp_path):
    env = make_env()
    agent = make_agent(env, normalize=True, normalize_rewards=True)
    for rollout in rollouts(env, agent, 2):
        agent.train(rollout)
    path = tf.train.Checkpoint(agent=agent).write(str(tmp_path / "checkpoint"))
    other = make_agent(make_env(), normalize=True, normalize_rewards=True)
    tf.train.Checkpoint(agent=other).read(path).assert_existing_objects_matched().assert_consumed()
    assert_all_close(other.reward_scaler.variables, agent.reward_scaler.variables)
    assert_all_close(tf.nest.flatten(other.carry), tf.nest.flatten(agent.carry))
    (rollout,) = rollouts(make_env(), agent, 1)
    np.testing.assert_array_equal(other.train(rollout).loss, agent.train(rollout).loss)  # shuffled alike, too

    policy_saver.PolicySaver(agent.collect_policy).save(str(tmp_path / "policy"))
    saved = tf.saved_model.load(str(tmp_path / "policy"))
    kept = [variable.numpy() for variable in saved.model_variables]
    for variable in (agent.reward_scaler.variables[0], *agent.network.variables):
        assert any(np.array_equal(variable, value) for value in kept), variable.name


def test_store_bytes():
    env = make_env()
    agent = make_agent(env)
    state, S, r = (part.numpy() for part in agent.carry[0])
    assert agent.store_bytes(T) == (state.nbytes + S.nbytes + r.nbytes) * T // 3
    assert make_agent(env, chunk=1).store_bytes(T) == 3 * agent.store_bytes(T)
    batch, _ = agent.prepare(rollouts(env, agent, 1)[0])
    assert sum(part.numpy().nbytes for part in batch.carry[0]) == agent.store_bytes(T)
    assert make_agent(env, gradient="tbptt").store_bytes(T) == state.nbytes * T // 3


def test_optimizer_steps():
    assert PPOConfig(num_epochs=3, num_minibatches=5).optimizer_steps == 15


def test_reset_carry():
    env = make_env()
    agent = make_agent(env, normalize_rewards=True)
    (rollout,) = rollouts(env, agent, 1, steps=T - 3)
    agent.train(rollout._replace(reward=tf.ones_like(rollout.reward)))
    scale = agent.reward_scaler.scale
    assert all(np.any(part) for part in tf.nest.flatten(agent.stream_values()))
    agent.reset_carry()
    assert not any(np.any(part) for part in tf.nest.flatten(agent.stream_values()))
    assert agent.reward_scaler.scale == scale


@pytest.mark.parametrize("normalize_rewards", [False, True])
def test_one_replica_holds_its_streams_as_checkpoints_do(normalize_rewards):
    env = make_env()
    agent = make_agent(env, normalize_rewards=normalize_rewards)
    (rollout,) = rollouts(env, agent, 1, steps=T - 3)
    agent.train(rollout._replace(reward=tf.ones_like(rollout.reward)))
    before = [part.numpy() for part in tf.nest.flatten(agent.stream_values())]
    agent.gather_streams()
    agent.scatter_streams()
    for part, wanted in zip(tf.nest.flatten(agent.stream_values()), before, strict=True):
        np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"lambda_value": -0.1}, "lambda_value"),
        ({"importance_ratio_clipping": 0}, "importance_ratio_clipping"),
        ({"value_clipping": -1}, "value_clipping"),
        ({"value_pred_loss_coef": -1}, "value_pred_loss_coef"),
        ({"entropy_regularization": "a"}, "entropy_regularization"),
        ({"gradient_clipping": 0}, "gradient_clipping"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"num_minibatches": 1.5}, "num_minibatches"),
        ({"chunk": 0}, "chunk"),
        ({"stale_gradient": "no"}, "stale_gradient"),
        ({"stale_target": 2}, "stale_target"),
        ({"normalize_rewards": None}, "normalize_rewards"),
        ({"reward_clipping": 0}, "reward_clipping"),
    ],
)
def test_config_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


def test_bad_experience():
    env = make_env()
    agent = make_agent(env)
    (rollout,) = rollouts(env, agent, 1)
    with pytest.raises(ValueError, match="weights"):
        agent.train(rollout, weights=tf.ones([B]))
    with pytest.raises(ValueError, match="num_streams=4"):
        agent.train(tf.nest.map_structure(lambda x: x[:2], rollout))
    with pytest.raises(ValueError, match="chunk must divide the rollout's 11 steps, got chunk=3"):
        agent.train(tf.nest.map_structure(lambda x: x[:, :T], rollout))
    with pytest.raises(ValueError, match=r"minibatches must divide the 16 chunks.*got num_minibatches=5"):
        make_agent(env, num_minibatches=5).train(rollout)
    with pytest.raises(ValueError, match="num_streams"):
        RTRLPPOAgent(agent.time_step_spec, agent.action_spec, agent.network, agent.optimizer, num_streams=0)
