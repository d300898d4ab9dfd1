"""An update that is not finite is reported and not applied; what counts for nothing may hold anything."""

import made
import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec

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
from keras_rtrl.agents.ppo.losses import gae, ppo_terms
from keras_rtrl.agents.r2ac.losses import r2ac_loss, vtrace
from keras_rtrl.agents.reward_scaler import RewardScaler
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.networks.normalizer import RunningNormalizer

FIRST, MID, LAST = 0, 1, 2
ACTIONS = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
HISTORY, LOGITS = made.history(ACTIONS), {"logits": tf.TensorSpec([3], tf.float32)}
AGENTS = {
    "r2ac": (R2ACAgent, R2ACConfig(), 2, 5, "rtrl"),
    "ppo": (RTRLPPOAgent, PPOConfig(chunk=2, num_minibatches=3, num_epochs=2), 2, 6, "rtrl"),
    "stream_ac": (StreamACAgent, StreamACConfig(), 1, 1, "rtrl"),
    "td_lambda": (TDLambdaAgent, TDLambdaConfig(lambda_value=0.5, window=2), 1, 1, "tbptt"),
}
FIELDS = ("reward", "discount", "observation", "policy_info")
NAN, INF = float("nan"), float("inf")


def make_agent(kind):
    agent_class, config, streams, _, gradient = AGENTS[kind]
    keras.utils.set_random_seed(0)
    network = ActorCriticNetwork(
        HISTORY, ACTIONS, core="rtu", units=4, gradient=gradient, encoder_units=(5,), normalize_observation=True
    )
    return made.agent(agent_class, network, config, streams, optimizer=keras.optimizers.Adam(0.01))


def make_experience(kind, seed, step_type=None):
    """Of random numbers."""
    _, _, streams, steps, _ = AGENTS[kind]
    step_type = np.full([streams, steps + 1], MID) if step_type is None else step_type
    zeros = made.experience(step_type, HISTORY, ACTIONS, LOGITS)
    rng = np.random.default_rng(seed)

    def drawn(part):
        whole = np.issubdtype(part.dtype, np.integer)
        return rng.integers(0, 3, part.shape) if whole else rng.normal(size=part.shape).astype(np.float32)

    kept = {name: getattr(zeros, name) for name in ("step_type", "next_step_type", "discount")}
    return tf.nest.map_structure(drawn, zeros)._replace(**kept)


def part(experience, field):
    value = getattr(experience, field)
    return value[{"observation": "observation", "policy_info": "logits"}[field]] if isinstance(value, dict) else value


def tensors(experience):
    return tf.nest.map_structure(tf.constant, experience)


def kept(agent):
    """All that learning changes, but for what counts calls and draws numbers."""
    parts = [agent.network, agent.reward_scaler, agent]
    variables = [*agent.optimizer.variables, *(v for part in parts if part is not None for v in part.variables)]
    return [v.numpy() for v in variables if v is not agent.train_step_counter and v.dtype.is_floating]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("kind", "compiled"),
    [
        pytest.param("r2ac", False, id="r2ac-graph"),
        pytest.param("ppo", True, id="ppo-xla"),
        pytest.param("stream_ac", True, id="stream_ac-xla"),
        pytest.param("td_lambda", False, id="td_lambda-graph", marks=pytest.mark.full),
        pytest.param("r2ac", True, id="r2ac-xla", marks=pytest.mark.full),
        pytest.param("ppo", False, id="ppo-graph", marks=pytest.mark.full),
        pytest.param("stream_ac", False, id="stream_ac-graph", marks=pytest.mark.full),
        pytest.param("td_lambda", True, id="td_lambda-xla", marks=pytest.mark.full),
    ],
)
def test_an_update_that_is_not_finite_is_reported_and_not_applied(kind, compiled):
    agent = make_agent(kind)
    train = tf.function(agent.train, autograph=False, jit_compile=compiled)
    assert np.isfinite(train(tensors(make_experience(kind, 1))).loss)
    before = kept(agent)
    calls, steps = int(agent.train_step_counter), int(agent.optimizer.iterations)
    fields = FIELDS if AGENTS[kind][2] > 1 else FIELDS[:3]  # the streaming agents learn on policy
    for field in fields:
        for value in (NAN, INF, -INF):
            experience = make_experience(kind, 2)
            part(experience, field)[-1, AGENTS[kind][3] // 2] = value
            info = train(tensors(experience))
            assert not np.all(np.isfinite([info.loss, *info.extra])), (field, value)
            assert_equal(kept(agent), before)
            calls += 1
    assert int(agent.train_step_counter) == calls
    assert int(agent.optimizer.iterations) == steps
    assert np.all(np.isfinite(np.hstack([x for x in train(tensors(make_experience(kind, 3)))[0:1]])))
    assert any(np.any(a != b) for a, b in zip(kept(agent), before, strict=True))


@pytest.mark.parametrize("kind", ["stream_ac", "ppo"])
def test_an_update_is_applied_whole_or_not_at_all_eagerly_too(kind):
    agent = make_agent(kind)
    agent.train(tensors(make_experience(kind, 1)))
    before = kept(agent)
    experience = make_experience(kind, 2)
    experience.reward[-1, 0] = NAN
    assert np.isnan(agent.train(tensors(experience)).loss)
    assert_equal(kept(agent), before)


STEP_TYPES = {
    "r2ac": [[MID, LAST, FIRST, MID, MID, MID], [MID, MID, MID, LAST, FIRST, MID]],
    "ppo": [[MID, LAST, FIRST, MID, MID, MID, MID], [MID, MID, MID, LAST, FIRST, MID, MID]],
    "stream_ac": [[LAST, FIRST]],
    "td_lambda": [[LAST, FIRST]],
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.full) if kind == "td_lambda" else kind for kind in AGENTS]
)
def test_boundary_frames_and_the_last_frame_may_hold_anything_that_counts_for_nothing(kind):
    def trained(garbage):
        agent = make_agent(kind)
        agent.train(tensors(make_experience(kind, 1)))
        experience = make_experience(kind, 2, STEP_TYPES[kind])
        unused = np.array(experience.step_type) == LAST
        unused[:, -1] = True
        for field in ("reward", "discount", "policy_info"):
            part(experience, field)[unused] = garbage
        experience.action[unused] = -7 if np.isnan(garbage) else 1
        first = np.array(experience.step_type) == FIRST
        experience.observation["last_reward"][first] = garbage
        train = tf.function(agent.train, autograph=False)
        info = train(tensors(experience))
        return [np.array([info.loss, *info.extra]), *kept(agent)]

    clean, dirty = trained(0.5), trained(NAN)
    assert np.all(np.isfinite(clean[0]))
    assert_equal(dirty, clean)


def test_losses_and_their_gradients_select():
    boundary = tf.constant([[False, False, True, False]])
    rng = np.random.default_rng(0)
    names = ("log_rho", "reward", "value", "entropy", "log_pi", "discount")

    def outcome(garbage):
        x = {name: rng_values.copy() for name, rng_values in values.items()}
        for name in ("log_rho", "reward", "entropy", "log_pi", "discount"):
            x[name][0, 2] = garbage
        x["value"][0, 2] = garbage  # its episode has terminated: the discount before it is 0
        x["discount"][0, 1] = 0.0
        x = {name: tf.constant(value, tf.float32) for name, value in x.items()}
        last = tf.constant([0.7])
        with tf.GradientTape() as tape:
            watched = [x["log_rho"], x["value"], x["entropy"], x["log_pi"]]
            tape.watch(watched)
            targets = vtrace(x["log_rho"], x["discount"], x["reward"], x["value"], last, boundary)
            terms = r2ac_loss(x["log_pi"], x["entropy"], x["value"], targets, boundary)
            advantage = gae(x["reward"], x["discount"], x["value"], last, boundary, 0.9)
            ppo = ppo_terms(
                x["log_rho"], x["entropy"], x["value"], x["value"] + 0.1, advantage, x["reward"], boundary, 0.2, 0.2
            )
            loss = tf.add_n([*terms, *ppo])
        gradients = tape.gradient(loss, watched)
        played = [tf.boolean_mask(part, ~boundary) for part in (*targets, advantage)]
        return [part.numpy() for part in (*terms, *ppo, *gradients, *played)]

    values = {name: rng.normal(size=(1, 4)) for name in names}
    clean = outcome(0.3)
    assert all(np.all(np.isfinite(part)) for part in clean)
    for garbage in (NAN, INF):
        assert_equal(outcome(garbage), clean)


def test_rewards_of_one_step_episodes_have_their_own_deviation():
    scaler = RewardScaler(gamma=0.9, num_streams=1)
    between = tf.constant([[False, True, False, True]])
    scaler.update(tf.constant([[1.0, NAN, 3.0, 0.0]]), between)
    np.testing.assert_allclose(scaler.scale, 1.0, rtol=1e-6)  # of 1 and 3
    by_frames = RewardScaler(gamma=0.9, num_streams=1)  # as agents that learn at every step have it
    for t, reward in enumerate([1.0, 9.0, 3.0, 9.0]):
        by_frames.update(tf.constant([[reward]]), between[:, t : t + 1])
    np.testing.assert_allclose(by_frames.scale, scaler.scale, rtol=1e-6)
    by_frames.update(tf.constant([[7.0]]), tf.constant([[False]]))
    np.testing.assert_allclose(by_frames.scale, np.std([1, 3, 7]), rtol=1e-6)


def test_every_observation_is_counted_once():
    agent = make_agent("r2ac")
    whole = make_experience("r2ac", 4, [[MID, LAST, FIRST, MID, MID, LAST], [FIRST, MID, MID, LAST, FIRST, MID]])
    seen = []
    for start, stop in ((0, 3), (2, 6)):  # frame 2 ends a rollout and begins the next
        agent.train(tensors(tf.nest.map_structure(lambda x, cut=slice(start, stop): x[:, cut], whole)))
        seen.append(whole.observation["observation"][:, start : stop - 1].reshape(-1, 3))
    seen = np.concatenate(seen)
    np.testing.assert_allclose(agent.network.normalizer.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(agent.network.normalizer.variance, seen.var(0), rtol=1e-5)


def test_infinity_is_not_clipped_away():
    normalizer = RunningNormalizer([])
    np.testing.assert_array_equal(np.isnan(normalizer(tf.constant([INF, -INF, 1e9, NAN]))), [True, True, False, True])
