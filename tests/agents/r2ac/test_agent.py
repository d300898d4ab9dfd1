"""The R2AC agent: what it computes, what it carries, what it assigns."""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl import layers
from keras_rtrl._keras import keras
from keras_rtrl.agents import R2ACAgent, R2ACConfig
from keras_rtrl.agents.r2ac import losses
from keras_rtrl.networks import ActorCriticNetwork

B, T = 2, 5
FIRST, MID, LAST = 0, 1, 2
ACTIONS = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
HISTORY = {
    "observation": tf.TensorSpec([4], tf.float32),
    "last_reward": tf.TensorSpec([], tf.float32),
    "last_action": ACTIONS,
}


def stack():
    return layers.RTRLStack([layers.ELSTM(5), layers.RTU(3)])


CORES = [
    ("elstm", "rtrl"),
    ("lstm", "tbptt"),
    (stack, None),
    pytest.param("rtu", "rtrl", marks=pytest.mark.full),
    pytest.param("elstm", "tbptt", marks=pytest.mark.full),
]


def make_agent(core="elstm", gradient="rtrl", rate=0.0, seed=3, optimizer=None, encoder_units=(5,), **config):
    keras.utils.set_random_seed(seed)
    core, units = (core, 6) if isinstance(core, str) else (core(), None)
    network = ActorCriticNetwork(
        HISTORY, ACTIONS, core=core, units=units, gradient=gradient, encoder_units=encoder_units, head_units=(4,)
    )
    return R2ACAgent(
        ts.time_step_spec(HISTORY),
        ACTIONS,
        network,
        optimizer or keras.optimizers.SGD(rate),
        num_streams=B,
        config=R2ACConfig(**config),
        train_step_counter=tf.Variable(0, dtype=tf.int64),
    )


def make_experience(steps=T, seed=0, step_type=None, batch=B):
    """Random frames 0..T-1; frame T holds an observation and a step type, the rest is zero."""
    rng = np.random.default_rng(seed)
    shape = (batch, steps + 1)
    inside = np.arange(steps + 1) < steps
    step_type = np.full(shape, MID) if step_type is None else np.array(step_type)
    return trajectory.Trajectory(
        step_type=tf.constant(step_type, tf.int32),
        observation={
            "observation": tf.constant(rng.normal(size=(*shape, 4)), tf.float32),
            "last_reward": tf.constant(rng.normal(size=shape), tf.float32),
            "last_action": tf.constant(rng.integers(0, 3, shape), tf.int64),
        },
        action=tf.constant(rng.integers(0, 3, shape) * inside, tf.int64),
        policy_info={"logits": tf.constant(rng.normal(size=(*shape, 3)) * inside[:, None], tf.float32)},
        next_step_type=tf.constant(np.roll(step_type, -1, 1) * inside, tf.int32),
        reward=tf.constant(2 * rng.normal(size=shape) * inside, tf.float32),
        discount=tf.constant(np.ones(shape) * inside, tf.float32),
    )


def with_values(experience, field, index, value):
    """The experience with one field's [index] set to `value`."""
    array = np.array(getattr(experience, field))
    array[index] = value
    return experience._replace(**{field: tf.constant(array)})


def with_other_observations(experience, row, frames):
    def change(x):
        x = np.array(x)
        x[row, frames] = 1 - x[row, frames]
        return tf.constant(x)

    return experience._replace(observation=tf.nest.map_structure(change, experience.observation))


def set_carry(agent, seed=7):
    rng = np.random.default_rng(seed)
    for variable in tf.nest.flatten(agent.carry):
        variable.assign(0.3 * rng.normal(size=variable.shape))


def values_of(carry):
    return tf.nest.map_structure(lambda variable: variable.value(), carry)


def core_gradients(agent, experience):
    with tf.GradientTape() as tape:
        loss = agent.loss(experience).loss
    return [g.numpy() for g in tape.gradient(loss, agent.network.core_variables, unconnected_gradients="zero")]


def numpy_loss(agent, experience, config):
    """The loss of the module's docstring, in NumPy loops, from the network's own outputs."""
    network = agent.network
    logits, values, _ = network.unroll(
        experience.observation, experience.step_type == FIRST, network.state_of(values_of(agent.carry))
    )
    log_pi, values = tf.nn.log_softmax(logits).numpy(), values.numpy()
    log_mu = tf.nn.log_softmax(experience.policy_info["logits"]).numpy()
    total = 0.0
    for b in range(B):
        v = values[b, T]
        for t in reversed(range(T)):
            if experience.step_type[b, t] == LAST:
                v = values[b, t]
                continue
            a = int(experience.action[b, t])
            rho = min(1.0, np.exp(log_pi[b, t, a] - log_mu[b, t, a]))
            gamma = config.gamma * float(experience.discount[b, t])
            reward = float(np.clip(experience.reward[b, t], -1, 1))
            advantage = rho * (reward + gamma * v - values[b, t])
            # v_t - V_t = delta_t + gamma c (v_{t+1} - V_{t+1}) = rho (r + gamma v_{t+1} - V_t), as c = rho
            v = values[b, t] + advantage
            p = np.exp(log_pi[b, t])
            total += -log_pi[b, t, a] * advantage + config.value_pred_loss_coef * 0.5 * (v - values[b, t]) ** 2
            total -= config.entropy_regularization * -(p * log_pi[b, t]).sum()
    return total


@pytest.mark.parametrize(("core", "gradient"), CORES)
def test_loss_is_the_sum_worked_out_frame_by_frame(core, gradient):
    agent = make_agent(core, gradient, entropy_regularization=0.3, value_pred_loss_coef=0.7, gamma=0.9)
    set_carry(agent)
    experience = make_experience(step_type=[[MID, MID, LAST, FIRST, MID, MID], [MID, MID, MID, MID, LAST, FIRST]])
    experience = with_values(experience, "discount", (0, 1), 0.0)
    info = agent.loss(experience)
    np.testing.assert_allclose(info.loss, numpy_loss(agent, experience, agent.config), rtol=1e-4)
    extra = info.extra
    np.testing.assert_allclose(info.loss, extra.policy_loss + 0.7 * extra.value_loss - 0.3 * extra.entropy, rtol=1e-5)


def test_rewards_are_clipped_in_the_learner():
    agent, free = make_agent(), make_agent(reward_clipping=None)
    experience = make_experience()
    clipped = experience._replace(reward=tf.clip_by_value(experience.reward, -1, 1))
    assert agent.loss(experience).loss == agent.loss(clipped).loss
    assert free.loss(clipped).loss == agent.loss(clipped).loss
    assert abs(free.loss(experience).loss - agent.loss(experience).loss) > 0.1


def test_of_frame_t_only_observation_and_step_type_count():
    agent = make_agent()
    experience = make_experience()
    before = agent.loss(experience).loss
    for field, value in (("action", 2), ("reward", 9.0), ("discount", 0.5), ("next_step_type", FIRST)):
        assert agent.loss(with_values(experience, field, (slice(None), -1), value)).loss == before
    assert agent.loss(with_other_observations(experience, slice(None), [T])).loss != before


@pytest.mark.parametrize(("core", "gradient"), CORES)
def test_nothing_after_a_last_reaches_a_loss_before_it(core, gradient):
    # stream 0 ends at frame 2, and frames 3.. are changed; frames 0 to 2 are all that has a loss in `short`
    agent = make_agent(core, gradient)
    set_carry(agent)
    types = [[MID, MID, LAST, FIRST, MID, MID]] * 2
    experience = make_experience(step_type=types)
    short = tf.nest.map_structure(lambda x: x[:, :3], experience)
    rest = tf.nest.map_structure(lambda x: x[:, 3:], experience)

    def split_losses(experience):
        whole = agent.loss(experience).loss
        later = agent.loss(tf.nest.map_structure(lambda x: x[:, 3:], experience)).loss
        return float(whole - later)

    # the rest starts with FIRST: its loss does not depend on what came before, and the two parts add up
    np.testing.assert_allclose(split_losses(experience), agent.loss(short).loss, rtol=1e-4)
    changed = with_other_observations(experience, 0, [3, 4, 5])
    changed = with_values(changed, "reward", (0, [2, 3, 4]), -0.9)
    assert abs(agent.loss(tf.nest.map_structure(lambda x: x[:, 3:], changed)).loss - agent.loss(rest).loss) > 1e-3
    np.testing.assert_allclose(split_losses(changed), agent.loss(short).loss, rtol=1e-4)


def test_termination_gives_a_zero_bootstrap_and_truncation_the_last_value():
    # reward 0 at the episode's last step, so that step's target is 0 or gamma V(last observation)
    agent = make_agent(entropy_regularization=0.0, value_pred_loss_coef=0.0)
    types = [[MID, LAST]] * B
    experience = make_experience(steps=1, step_type=types)._replace(reward=tf.zeros([B, 2]))
    terminated = with_values(experience, "discount", (slice(None), 0), 0.0)
    before = agent.loss(terminated).loss
    assert agent.loss(with_other_observations(terminated, slice(None), [1])).loss == before
    truncated = agent.loss(experience).loss
    assert truncated != before
    assert agent.loss(with_other_observations(experience, slice(None), [1])).loss != truncated


@pytest.mark.parametrize(("core", "gradient"), CORES)
def test_first_resets_state_and_traces(core, gradient):
    agent, fresh = make_agent(core, gradient), make_agent(core, gradient)
    set_carry(agent)
    experience = make_experience(step_type=[[FIRST] + [MID] * T] * B)
    np.testing.assert_allclose(agent.loss(experience).loss, fresh.loss(experience).loss, rtol=1e-5)
    for a, b in zip(core_gradients(agent, experience), core_gradients(fresh, experience), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    agent.train(experience)
    fresh.train(experience)
    for a, b in zip(tf.nest.flatten(agent.carry), tf.nest.flatten(fresh.carry), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("core", "gradient"), CORES)
def test_train_carries_what_a_straight_unroll_of_frames_before_t_gives(core, gradient):
    agent = make_agent(core, gradient, rate=0.1)
    set_carry(agent)
    experience = make_experience(step_type=[[MID, LAST, FIRST, MID, MID, LAST]] * B)
    before = values_of(agent.carry)
    observation = tf.nest.map_structure(lambda x: x[:, :T], experience.observation)
    _, _, expected = agent.network.unroll(observation, experience.step_type[:, :T] == FIRST, before)
    agent.train(experience)
    assert all(part.has_traces == (gradient != "tbptt") for part in agent.carry)
    for variable, part, old in zip(*map(tf.nest.flatten, (agent.carry, expected, before)), strict=True):
        assert not variable.trainable
        np.testing.assert_allclose(variable, part, rtol=1e-5, atol=1e-6)
        assert np.abs(variable - old).max() > 1e-3
    agent.reset_carry()
    assert all(np.abs(v).max() == 0 for v in tf.nest.flatten(agent.carry))


def test_loss_assigns_nothing_and_is_what_train_reports():
    agent = make_agent(rate=0.1)
    set_carry(agent)
    carry = tf.nest.flatten(agent.carry)
    variables = [*carry, *agent.network.variables, *agent._optimizer.variables, agent.train_step_counter]
    before = [v.numpy() for v in variables]
    info = agent.loss(make_experience())
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    trained = agent.train(make_experience())
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), info, trained)
    assert all(np.abs(v - value).max() > 0 for v, value in zip(agent.network.variables, before[3:], strict=False))
    assert agent.train_step_counter == 1


@pytest.mark.parametrize("core", ["elstm", "rtu"])
def test_core_gradient_is_full_bptt_through_both_rollouts(core):
    """Under fixed parameters the second rollout's RTRL gradient is BPTT's from the first frame on; TBPTT's is not."""
    # no encoder layers: the core's input does not depend on parameters
    exact, truncated = (make_agent(core, gradient, encoder_units=()) for gradient in ("rtrl", "tbptt"))
    for a, b in zip(exact.network.variables, truncated.network.variables, strict=True):
        b.assign(a)
    whole = make_experience(steps=2 * T, step_type=[[FIRST] + [MID] * 2 * T, [FIRST, MID, LAST, FIRST] + [MID] * 7])
    first = tf.nest.map_structure(lambda x: x[:, : T + 1], whole)
    second = tf.nest.map_structure(lambda x: x[:, T:], whole)
    exact.train(first)
    truncated.train(first)

    # BPTT in one tape over both rollouts, the loss only on the second: that of all frames less that of the first.
    # V-trace's targets are constants; so the second's targets must not depend on the first: they look ahead only.
    network = truncated.network
    with tf.GradientTape() as tape:
        logits, values, _ = network.unroll(whole.observation, whole.step_type == FIRST, network.get_initial_carry(B))
        total = _loss_from_outputs(exact, second, logits[:, T:-1], values[:, T:-1], values[:, -1])
    expected = tape.gradient(total, network.core_variables)
    np.testing.assert_allclose(total, exact.loss(second).loss, rtol=1e-4)

    rtrl, tbptt = core_gradients(exact, second), core_gradients(truncated, second)
    differences = []
    for a, b, c, variable in zip(rtrl, expected, tbptt, network.core_variables, strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=2e-5 * max(scale, 1.0), rtol=1e-3, err_msg=variable.name)
        differences.append(np.abs(c - b).max() / scale)
    assert max(differences) > 0.05


def _loss_from_outputs(agent, experience, logits, values, last_value):
    config, head = agent.config, agent.network.actions
    action, boundary = experience.action[:, :-1], experience.step_type[:, :-1] == LAST
    log_pi = head.log_probability(logits, action)
    log_rho = log_pi - head.log_probability(experience.policy_info["logits"][:, :-1], action)
    reward = tf.clip_by_value(experience.reward[:, :-1], -1, 1)
    targets = losses.vtrace(log_rho, config.gamma * experience.discount[:, :-1], reward, values, last_value, boundary)
    terms = losses.r2ac_loss(log_pi, head.entropy(logits), values, targets, boundary)
    return (
        terms.policy_loss
        + config.value_pred_loss_coef * terms.value_loss
        - config.entropy_regularization * terms.entropy
    )


@pytest.mark.parametrize("core", ["elstm", "rtu"])
def test_encoder_and_heads_are_trained_by_tbptt_in_either_mode(core):
    exact, truncated = make_agent(core, "rtrl"), make_agent(core, "tbptt")
    experience = make_experience()
    gradients = []
    for agent in (exact, truncated):
        set_carry(agent)
        own = {v.ref() for v in agent.network.core_variables}
        rest = [v for v in agent.network.trainable_variables if v.ref() not in own]
        with tf.GradientTape() as tape:
            loss = agent.loss(experience).loss
        gradients.append(tape.gradient(loss, rest))
    assert len(gradients[0]) == 8  # two of each: encoder, head layer, policy, value
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        assert np.abs(a).max() > 1e-6


def test_a_frozen_core_stays_and_the_rest_learns():
    agent = make_agent(rate=0.1, train_core=False)
    own = {v.ref() for v in agent.network.core_variables}
    before = [v.numpy() for v in agent.network.variables]
    agent.train(make_experience())
    assert own
    for variable, value in zip(agent.network.variables, before, strict=True):
        assert (np.abs(variable - value).max() > 0) == (variable.ref() not in own), variable.name


def test_gradient_is_clipped_by_its_global_norm():
    clip = 0.01
    agent, free = make_agent(rate=1.0, gradient_clipping=clip), make_agent(rate=1.0, gradient_clipping=None)
    for one, expected in ((agent, clip), (free, None)):
        before = [v.numpy() for v in one.network.variables]
        norm = float(one.train(make_experience()).extra.gradient_norm)
        assert norm > clip
        moved = np.sqrt(sum(np.sum((v - b) ** 2) for v, b in zip(one.network.variables, before, strict=True)))
        np.testing.assert_allclose(moved, expected or norm, rtol=1e-3)


def test_eager_graph_and_xla_agree():  # the eLSTM in test_stock_parts.py
    experience = make_experience(step_type=[[MID, LAST, FIRST, MID, MID, MID]] * B)
    results = []
    for options in (None, {}, {"jit_compile": True}):
        agent = make_agent("rtu", optimizer=keras.optimizers.Adam(0.01))
        train = agent.train if options is None else tf.function(agent.train, autograph=False, **options)
        infos = [train(experience), train(experience)]
        results.append([*tf.nest.flatten((infos, agent.carry)), *agent.network.variables])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)


def test_unknown_batch_and_time():
    agent = make_agent(rate=0.1)
    spec = tf.nest.map_structure(lambda s: tf.TensorSpec([None, None, *s.shape], s.dtype), agent.collect_data_spec)
    train = tf.function(agent.train, input_signature=[spec], autograph=False)
    np.testing.assert_allclose(make_agent().loss(make_experience()).loss, train(make_experience()).loss, rtol=1e-5)
    train(make_experience(steps=3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="num_streams"):
        train(make_experience(batch=3))


def test_bad_experience_and_arguments():
    agent = make_agent()
    with pytest.raises(ValueError, match="num_streams=2 streams, got 3"):
        agent.train(make_experience(batch=3))
    with pytest.raises(ValueError, match="at least 2 frames"):
        agent.train(tf.nest.map_structure(lambda x: x[:, :1], make_experience()))
    with pytest.raises(ValueError, match="weights"):
        agent.train(make_experience(), weights=tf.ones([2]))
    for name, value in (
        ("gamma", 1.5),
        ("entropy_regularization", -1.0),
        ("reward_clipping", 0.0),
        ("gradient_clipping", -1.0),
    ):
        with pytest.raises(ValueError, match=name):
            R2ACConfig(**{name: value})
    with pytest.raises(ValueError, match="num_streams"):
        R2ACAgent(ts.time_step_spec(HISTORY), ACTIONS, agent.network, keras.optimizers.SGD(0.1), num_streams=0)


@pytest.mark.parametrize("core", ["elstm", stack])
def test_checkpoint_holds_parameters_optimiser_carry_counter_and_the_policys_random_state(tmp_path, core):
    agent, other = (make_agent(core, None, 0.1, seed, keras.optimizers.Adam(0.01)) for seed in (1, 2))
    agent.train(make_experience())
    path = tf.train.Checkpoint(agent=agent).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(agent=other).restore(path).assert_existing_objects_matched()
    time_step = ts.restart(tf.nest.map_structure(lambda x: x[:, 0], make_experience().observation), B)
    for a, b in zip(tf.nest.flatten(agent.carry), tf.nest.flatten(other.carry), strict=True):
        np.testing.assert_array_equal(a, b)
    for _ in range(5):
        actions = [
            one.collect_policy.action(time_step, one.collect_policy.get_initial_state(B)) for one in (agent, other)
        ]
        np.testing.assert_array_equal(actions[0].action, actions[1].action)
    for call in ("train", "loss"):
        results = [getattr(one, call)(make_experience()).loss for one in (agent, other)]
        np.testing.assert_allclose(*results, rtol=1e-6)
    assert agent.train_step_counter == other.train_step_counter == 2


def test_policies():
    agent = make_agent()
    observation = tf.nest.map_structure(lambda x: tf.repeat(x[:1, 0], 4000, 0), make_experience().observation)
    time_step = ts.restart(observation, 4000)
    policy = agent.collect_policy
    step = tf.function(policy.action, jit_compile=True)(time_step, policy.get_initial_state(4000))
    probabilities = tf.nn.softmax(step.info["logits"][0]).numpy()
    frequencies = np.bincount(step.action, minlength=3) / 4000
    np.testing.assert_allclose(frequencies, probabilities, atol=4 * 0.5 / np.sqrt(4000))
    tf.nest.map_structure(
        lambda part, spec: part.shape.assert_is_compatible_with([4000, *spec.shape]),
        step.state,
        agent.network.state_spec,
    )
    greedy = agent.policy.action(time_step, agent.policy.get_initial_state(4000))
    assert set(greedy.action.numpy()) == {int(np.argmax(probabilities))}
