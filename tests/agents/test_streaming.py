"""What the streaming agents share: the gradient they follow, what they carry, and when they do not learn."""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl import environments, layers
from keras_rtrl._keras import keras
from keras_rtrl.agents import ObGD, StreamACAgent, StreamACConfig, TDLambdaAgent, TDLambdaConfig
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.networks.cores import zeros
from keras_rtrl.testing.finite_differences import along, numeric
from keras_rtrl.train.runners import InGraph

FIRST, MID, LAST = 0, 1, 2
GAMMA, DECAY, ENTROPY_COST, VALUE_COST = 0.9, 0.7, 0.3, 0.5
ACTIONS = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
HISTORY = {
    "observation": tf.TensorSpec([3], tf.float32),
    "last_reward": tf.TensorSpec([], tf.float32),
    "last_action": ACTIONS,
}
AGENTS = {"td": (TDLambdaAgent, TDLambdaConfig), "ac": (StreamACAgent, StreamACConfig)}


@pytest.fixture
def _float64():
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


def make_agent(
    kind="td", core="rtu", gradient="rtrl", optimizer=None, encoder_units=(), normalize=False, scale=False, **config
):
    keras.utils.set_random_seed(5)
    network = ActorCriticNetwork(
        HISTORY,
        ACTIONS,
        core=core,
        units=4,
        gradient=gradient,
        encoder_units=encoder_units,
        core_options={"activation": "tanh", "r_min": 0.5} if core == "rtu" else None,
        normalize_observation=normalize,
    )
    network.create_variables()
    for variable in network.trainable_variables:  # no bias at 0, where faults hide
        variable.assign_add(0.1 * tf.random.normal(variable.shape, dtype=variable.dtype))
    agent_class, config_class = AGENTS[kind]
    config = {"gamma": GAMMA, "lambda_value": DECAY, **config}
    if kind == "ac":
        costs = {"entropy_regularization": ENTROPY_COST, "value_pred_loss_coef": VALUE_COST}
        config = {**costs, "normalize_rewards": scale, **config}
    counter = tf.Variable(0, dtype=tf.int64)
    optimizer = optimizer or keras.optimizers.SGD(0.0)
    return agent_class(
        ts.time_step_spec(HISTORY),
        ACTIONS,
        network,
        optimizer,
        num_streams=1,
        config=config_class(**config),
        train_step_counter=counter,
    )


def make_frames(step_type, seed=0, discount=None):
    """A Trajectory [1, T] of random frames of the given step types, of which `transition` cuts."""
    rng = np.random.default_rng(seed)
    shape = (1, len(step_type))
    step_type = np.array(step_type)[None]
    after = np.roll(step_type, -1, 1)
    if discount is None:
        discount = np.where(after == LAST, 0.0, 1.0)
    return trajectory.Trajectory(
        step_type=tf.constant(step_type, tf.int32),
        observation={
            "observation": tf.constant(rng.normal(size=(*shape, 3)), tf.float32),
            "last_reward": tf.constant(rng.uniform(-1, 1, shape), tf.float32),
            "last_action": tf.constant(rng.integers(0, 3, shape), tf.int64),
        },
        action=tf.constant(rng.integers(0, 3, shape), tf.int64),
        policy_info={"logits": tf.zeros((*shape, 3), keras.backend.floatx())},
        next_step_type=tf.constant(after, tf.int32),
        reward=tf.constant(rng.normal(size=shape), tf.float32),
        discount=tf.constant(discount * np.ones(shape), tf.float32),
    )


def transition(frames, t):
    return tf.nest.map_structure(lambda x: x[:, t : t + 2], frames)


def train(agent, frames, step=None):
    """Trains on every transition of the frames; returns the LossInfos."""
    step = step or agent.train
    return [step(transition(frames, t)) for t in range(frames.step_type.shape[1] - 1)]


def scores(agent, frames, infos, t, history=None):
    """The sum of discounted objectives up to frame t of its episode, by an unrolling of the whole past.

    In the order of the agent's objectives; with `history`, the state is constant so many frames before t.
    """
    network, start = agent.network, 0
    if history is not None:
        start = t + 1 - history
    observation = tf.nest.map_structure(lambda x: x[:, : t + 1], frames.observation)
    reset = tf.equal(frames.step_type[:, : t + 1], FIRST)
    state = zeros(network.state_spec, 1)
    if start:
        state = scores.before
    outputs, values, _ = network.unroll(
        tf.nest.map_structure(lambda x: x[:, start:], observation), reset[:, start:], state
    )
    pi = tf.nn.log_softmax(outputs)
    entropy = -tf.reduce_sum(tf.exp(pi) * pi, -1)
    totals = np.zeros(2)
    for i in range(t, start - 1, -1):
        sign = np.sign(float(infos[i].extra.td_error))
        score = pi[0, i - start, int(frames.action[0, i])] + ENTROPY_COST * sign * entropy[0, i - start]
        totals += (GAMMA * agent.config.lambda_value) ** (t - i) * np.array([float(values[0, i - start]), float(score)])
        if reset[0, i]:
            break
    return totals


MIXED = [FIRST, MID, MID, LAST, FIRST, MID, MID, MID]  # the last is of the bootstrap


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("core", "decay"),
    [
        ("rtu", DECAY),
        ("elstm", DECAY),
        pytest.param("rtu", 0.0, marks=pytest.mark.full),
        pytest.param("lru", DECAY, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("step_type", [MIXED, [MID] * 6], ids=["episodes", "endless"])
def test_update_follows_the_gradient_through_the_whole_history(kind, core, decay, step_type):
    agent = make_agent(kind, core, lambda_value=decay)
    frames, variables = make_frames(step_type), agent.network.trainable_variables
    infos = train(agent, frames)  # the learning rate is 0
    t = len(infos) - 1
    td_error = float(infos[t].extra.td_error)

    def score():
        value, policy = scores(agent, frames, infos, t)
        return value if kind == "td" else VALUE_COST * value + policy

    expected, directions = numeric(variables, score)
    agent.reset_carry()
    train(agent, tf.nest.map_structure(lambda x: x[:, : t + 1], frames))
    before = [variable.numpy() for variable in variables]
    agent.optimizer.learning_rate.assign(1.0)
    agent.train(transition(frames, t))
    moved = [variable.numpy() - b for b, variable in zip(before, variables, strict=True)]
    np.testing.assert_allclose(along(moved, directions), td_error * expected, rtol=1e-5, atol=1e-9)
    assert abs(td_error) > 1e-2
    if kind == "ac":
        assert np.all(np.abs(expected) > 1e-8)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("core", ["rtu", "elstm"])
def test_eligibility_is_the_discounted_sum_of_gradients(core):
    agent = make_agent("ac", core)
    frames, variables = make_frames(MIXED), agent.network.trainable_variables
    infos = train(agent, frames)
    t = len(infos) - 1
    for k, name in enumerate(("critic", "actor")):
        expected, directions = numeric(variables, lambda k=k: scores(agent, frames, infos, t)[k])
        trace = [part.numpy() for part in agent.eligibility[name]]
        np.testing.assert_allclose(along(trace, directions), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("_float64")
def test_instant_gradient_differs():
    exact, instant = make_agent(), make_agent(gradient="instant")
    frames = make_frames([MID] * 8)
    for agent in (exact, instant):
        train(agent, frames)
    for wanted, got in zip(exact.network.core_variables, instant.network.core_variables, strict=True):
        np.testing.assert_array_equal(wanted, got)
    names = [variable.ref() for variable in exact.network.trainable_variables]
    for weight in exact.network.core_variables:
        wanted, got = (a.eligibility["critic"][names.index(weight.ref())].numpy() for a in (exact, instant))
        assert np.max(np.abs(wanted - got)) > 0.05 * np.max(np.abs(wanted))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("window", "step_type"), [(3, MIXED), pytest.param(3, [MID] * 6, marks=pytest.mark.full), (9, [MID] * 6)]
)
@pytest.mark.parametrize("core", ["rtu", "gru", "stack"])
def test_truncated_bptt_goes_back_over_the_window(core, window, step_type, monkeypatch):
    agent = make_agent("td", core, "tbptt", encoder_units=(5,), lambda_value=0.0, window=window)
    network, frames = agent.network, make_frames(step_type)
    as_seen = make_frames([FIRST, *step_type[1:]])  # the first frame of all counts as an episode's start
    variables, t = network.trainable_variables, len(step_type) - 2
    history = min(window, t + 1)
    past = slice(0, t + 1 - history)
    state = zeros(network.state_spec, 1)
    if history <= t:
        observation = tf.nest.map_structure(lambda x: x[:, past], frames.observation)
        _, _, state = network.unroll(observation, tf.equal(as_seen.step_type[:, past], FIRST), state)
    monkeypatch.setattr(scores, "before", state, raising=False)
    infos = train(agent, frames)
    expected, directions = numeric(variables, lambda: scores(agent, as_seen, infos, t, history)[0])
    agent.reset_carry()
    train(agent, tf.nest.map_structure(lambda x: x[:, : t + 1], frames))
    before = [variable.numpy() for variable in variables]
    agent.optimizer.learning_rate.assign(1.0)
    td_error = float(agent.train(transition(frames, t)).extra.td_error)
    moved = [variable.numpy() - b for b, variable in zip(before, variables, strict=True)]
    np.testing.assert_allclose(along(moved, directions), td_error * expected, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("_float64")
def test_encoder_follows_its_instantaneous_gradient():
    agent = make_agent(encoder_units=(5,), lambda_value=0.0)
    network, frames = agent.network, make_frames([MID] * 8)
    train(agent, tf.nest.map_structure(lambda x: x[:, :7], frames))
    last = transition(frames, 6)
    encoder = [v for v in network.trainable_variables if v.shape[0] in (3, 5) and v.shape[-1] == 5]
    assert len(encoder) == 2
    state = network.state_of(tf.nest.map_structure(tf.convert_to_tensor, agent.carry))
    with tf.GradientTape() as tape:
        observation = tf.nest.map_structure(lambda x: x[:, :1], last.observation)
        value = network.unroll(observation, tf.constant([[False]]), state)[1][0, 0]
    expected = tape.gradient(value, encoder)
    before = [variable.numpy() for variable in encoder]
    agent.optimizer.learning_rate.assign(1.0)
    td_error = agent.train(last).extra.td_error
    for b, variable, gradient in zip(before, encoder, expected, strict=True):
        np.testing.assert_allclose(variable.numpy() - b, td_error * gradient, rtol=1e-8, atol=1e-12)


def test_td_error():
    agent = make_agent("td")
    frames = make_frames([FIRST, MID, LAST, FIRST, MID, LAST, FIRST], discount=[1, 0, 1, 1, 1, 1, 1])
    reset = tf.equal(frames.step_type, FIRST)
    zero = zeros(agent.network.state_spec, 1)
    _, values, _ = agent.network.unroll(frames.observation, reset, zero)
    values, rewards = values[0].numpy(), frames.reward[0].numpy()
    for t, (info, discount) in enumerate(zip(train(agent, frames), [1, 0, None, 1, 1, None], strict=True)):
        wanted = 0.0 if discount is None else rewards[t] + GAMMA * discount * values[t + 1] - values[t]
        np.testing.assert_allclose(info.extra.td_error, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(info.extra.prediction, values[t], rtol=1e-5)
        np.testing.assert_allclose(info.loss, 0.5 * wanted**2, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", AGENTS)
def test_frame_between_episodes_gives_no_update(kind):
    agent = make_agent(kind, optimizer=keras.optimizers.Adam(0.1))
    variables = agent.network.trainable_variables
    train(agent, make_frames([FIRST, MID, LAST]))
    before, steps = [v.numpy() for v in variables], int(agent.optimizer.iterations)
    agent.train(make_frames([LAST, FIRST]))  # Adam's momentum alone would move them
    for b, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(b, variable)
    assert steps == int(agent.optimizer.iterations)
    agent.train(make_frames([FIRST, MID]))
    core = {variable.ref() for variable in agent.network.core_variables}
    assert all(np.any(b != v.numpy()) for b, v in zip(before, variables, strict=True) if v.ref() in core)


@pytest.mark.parametrize("gradient", ["rtrl", "tbptt"])
@pytest.mark.parametrize("discount", [0.0, 1.0], ids=["termination", "truncation"])
def test_episode_start_zeroes_carry_and_eligibility(gradient, discount):
    played, fresh = (make_agent("ac", gradient=gradient, window=2) for _ in range(2))
    frames = make_frames([FIRST, MID, LAST, FIRST, MID, MID], discount=[1, discount, 1, 1, 1, 1])
    train(played, frames)
    train(fresh, tf.nest.map_structure(lambda x: x[:, 3:], frames))
    traces = [tf.nest.flatten(agent.eligibility) for agent in (played, fresh)]
    for got, wanted in zip(*traces, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    if gradient == "rtrl":
        for got, wanted in zip(*map(tf.nest.flatten, (played.carry, fresh.carry)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
            assert np.any(got.numpy())


@pytest.mark.parametrize("core", ["rtu", "gru"])
def test_reset_carry_begins_anew(core):
    agent = make_agent("ac", core, "rtrl" if core == "rtu" else "tbptt", scale=True, window=3)
    frames = make_frames([MID] * 5)
    first = [info.extra.value.numpy() for info in train(agent, frames)]
    traces = [part.numpy() for part in tf.nest.flatten(agent.eligibility)]
    assert np.any(agent.reward_scaler.by_stream.values()[0])
    agent.reset_carry()
    kept = (*tf.nest.flatten((agent.carry, agent.eligibility)), *agent.reward_scaler.by_stream.values())
    assert not any(np.any(part.numpy()) for part in kept)
    again = [info.extra.value.numpy() for info in train(agent, frames)]
    np.testing.assert_allclose(again, first, rtol=1e-6)
    for part, wanted in zip(tf.nest.flatten(agent.eligibility), traces, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=0.2, atol=1e-3)  # the sign of delta changes with the scale


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("kind", "core", "gradient", "jit_compile"),
    [
        ("td", "elstm", "rtrl", False),
        ("ac", "rtu", "rtrl", True),
        pytest.param("ac", "rtu", "instant", False, marks=pytest.mark.full),
        pytest.param("ac", "gru", "tbptt", True, marks=pytest.mark.full),
        pytest.param("ac", "rtu", "rtrl", False, marks=pytest.mark.full),
        pytest.param("ac", "gru", "tbptt", False, marks=pytest.mark.full),
        pytest.param("td", "elstm", "rtrl", True, marks=pytest.mark.full),
        pytest.param("ac", "rtu", "instant", True, marks=pytest.mark.full),
    ],
)
def test_compiled_equals_eager(kind, core, gradient, jit_compile):
    frames = make_frames([FIRST, MID, MID, LAST, FIRST, MID, MID])
    options = {"normalize": True, "encoder_units": (5,), "scale": True, "window": 2}
    agents = [make_agent(kind, core, gradient, keras.optimizers.Adam(0.01), **options) for _ in range(2)]
    compiled = tf.function(agents[1].train, jit_compile=jit_compile, autograph=False)
    for want, got in zip(train(agents[0], frames), train(agents[1], frames, compiled), strict=True):
        np.testing.assert_allclose(got.loss, want.loss, rtol=1e-8)
        np.testing.assert_allclose(got.extra, want.extra, rtol=1e-8)
    for want, got in zip(agents[0].variables, agents[1].variables, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-10)


def make_players(optimizer, seed=0):
    keras.utils.set_random_seed(seed)
    env = environments.with_history(environments.make("MemoryChain-v0", num_envs=1, seed=seed, length=2))
    spec = tensor_spec.from_spec(env.time_step_spec())
    action_spec = tensor_spec.from_spec(env.action_spec())
    network = ActorCriticNetwork(spec.observation, action_spec, core="rtu", units=8, encoder_units=())
    counter = tf.Variable(0, dtype=tf.int64)
    return env, StreamACAgent(spec, action_spec, network, optimizer, num_streams=1, train_step_counter=counter)


def test_whole_loop_compiles_and_equals_stepping_by_hand():
    steps = 40
    env, agent = make_players(ObGD())
    driver = RolloutDriver(env, agent.collect_policy, num_steps=1)
    losses = []
    driver.observers.append(lambda rollout: losses.append(float(agent.train(rollout).loss)))
    for _ in range(steps):
        driver.run()
    env, other = make_players(ObGD())
    runner = InGraph(env, other, 1, steps)

    class Counters:
        running_returns = ()

    got = runner.run(steps, Counters()).losses[:, 0]
    np.testing.assert_allclose(got, losses, rtol=1e-3, atol=1e-5)
    assert np.max(losses) > 0.01
    for want, variable in zip(agent.network.trainable_variables, other.network.trainable_variables, strict=True):
        np.testing.assert_allclose(variable, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("core", ["rtu", "gru"])
def test_checkpoint_holds_everything(tmp_path, core):
    def make():
        gradient = "rtrl" if core == "rtu" else "tbptt"
        return make_agent("ac", core, gradient, keras.optimizers.Adam(0.01), normalize=True, scale=True, window=3)

    agent, other = make(), make()
    past, future = make_frames([FIRST, MID, LAST, FIRST, MID, MID]), make_frames([MID] * 4, seed=1)
    train(agent, past)
    path = tf.train.Checkpoint(agent=agent, network=agent.network).save(str(tmp_path / "c"))
    tf.train.Checkpoint(agent=other, network=other.network).restore(path).assert_consumed()
    for want, got in zip(train(agent, future), train(other, future), strict=True):
        np.testing.assert_array_equal(want.loss, got.loss)
    for want, got in zip(agent.network.variables, other.network.variables, strict=True):
        np.testing.assert_array_equal(want, got)
    fresh = make()
    assert float(train(fresh, future)[-1].loss) != pytest.approx(float(agent.loss(transition(future, 2)).loss))


@pytest.mark.parametrize("kind", AGENTS)
def test_loss_changes_nothing(kind):
    agent = make_agent(kind, optimizer=keras.optimizers.SGD(0.1), normalize=True, scale=True)
    frames = make_frames([MID] * 4)
    train(agent, frames)
    before = [variable.numpy() for variable in agent.variables]
    assert agent.loss(transition(frames, 0)).loss > 0
    for b, variable in zip(before, agent.variables, strict=True):
        np.testing.assert_array_equal(b, variable)


def test_what_the_agents_say_of_themselves():
    td, ac = make_agent("td"), make_agent("ac")
    assert td.loss_names == ("loss", "prediction", "td_error")
    assert ac.loss_names == ("loss", "value", "td_error", "entropy")
    assert [part.shape[0] for part in tf.nest.flatten(ac.carry)] == [1, 1, 1]
    assert (td.config.optimizer_steps, ac.config.optimizer_steps) == (1, 1)
    assert (list(td.eligibility), list(ac.eligibility)) == (["critic"], ["critic", "actor"])
    assert make_agent("td", lambda_value=0.0).eligibility == {}


def test_wrong_arguments():
    agent = make_agent()
    spec, network = ts.time_step_spec(HISTORY), agent.network
    with pytest.raises(ValueError, match=r"num_streams must be 1.*got 2"):
        TDLambdaAgent(spec, ACTIONS, network, keras.optimizers.SGD(0.1), num_streams=2)
    with pytest.raises(TypeError, match="config must be a TDLambdaConfig, got StreamACConfig"):
        TDLambdaAgent(spec, ACTIONS, network, keras.optimizers.SGD(0.1), num_streams=1, config=StreamACConfig())
    with pytest.raises(ValueError, match=r"2 frames of each stream.*got step_type of shape.*1, 3"):
        agent.train(make_frames([MID] * 3))
    with pytest.raises(ValueError, match="takes no weights"):
        agent.train(make_frames([MID] * 2), weights=tf.ones([1]))


def test_an_agent_has_a_name():
    network = make_agent().network
    arguments = ts.time_step_spec(HISTORY), ACTIONS, network, keras.optimizers.SGD(0.1)
    assert TDLambdaAgent(*arguments, num_streams=1, name="critic").name == "critic"
    assert TDLambdaAgent(*arguments[:3], keras.optimizers.SGD(0.1), num_streams=1).name == "td_lambda_agent"
    with pytest.raises(TypeError, match="positional"):
        TDLambdaAgent(*arguments, 1)


def test_who_predicts_has_no_games_to_report():
    assert TDLambdaAgent.predicts
    assert not StreamACAgent.predicts


def test_stack_that_would_be_cut_off_is_refused():
    def network(gradient):
        core = layers.RTRLStack([layers.RTU(4, gradient=gradient), layers.RTU(4, gradient=gradient)])
        return ActorCriticNetwork(HISTORY, ACTIONS, core=core, encoder_units=())

    spec, optimizer = ts.time_step_spec(HISTORY), keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match=r"network: TDLambdaAgent takes a core of one RTRL layer, got a stack of 2"):
        TDLambdaAgent(spec, ACTIONS, network("rtrl"), optimizer, num_streams=1)
    agent = TDLambdaAgent(spec, ACTIONS, network("tbptt"), keras.optimizers.SGD(0.1), num_streams=1)
    assert np.isfinite(agent.train(make_frames([FIRST, MID])).loss)


@pytest.mark.parametrize("config", [TDLambdaConfig, StreamACConfig])
@pytest.mark.parametrize(("name", "value"), [("gamma", 1.1), ("lambda_value", -0.1), ("window", 0), ("gamma", None)])
def test_settings_out_of_range(config, name, value):
    with pytest.raises(ValueError, match=name):
        config(**{name: value})


@pytest.mark.parametrize("name", ["entropy_regularization", "value_pred_loss_coef"])
def test_costs_out_of_range(name):
    with pytest.raises(ValueError, match=name):
        StreamACConfig(**{name: -1.0})
