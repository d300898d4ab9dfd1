"""The exported learner of an agent: in a fresh process that imports TensorFlow alone, and its rules."""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl import environments
from keras_rtrl._keras import keras
from keras_rtrl.agents import ObGD, StreamACAgent, StreamACConfig, TDLambdaAgent, TDLambdaConfig
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train import building, checkpoints, cli, config, runners, setup
from keras_rtrl.train.learner import AgentLearner
from keras_rtrl.train.run_folder import RunFolder

FIRST, MID, LAST = 0, 1, 2
LENGTH, EPISODE = 3, 6
STEPS, CUT = 10 * EPISODE, 31
PROGRAM = Path(__file__).with_name("serve_learner.py")
SHARED = {"weight", "optimizer", "observations", "rewards", "learner"}  # first words of names
SIGNATURES = ["freeze", "get", "info", "reset", "rollback", "set", "snapshot", "step", "thaw"]


def play_and_learn(kind):
    """An environment and an agent with eligibility traces; StreamAC normalises observations and rewards too."""
    keras.utils.set_random_seed(3)
    env = environments.with_history(environments.make("MemoryChain-v0", num_envs=1, seed=3, length=LENGTH))
    spec, actions = (tensor_spec.from_spec(spec) for spec in (env.time_step_spec(), env.action_spec()))
    network = ActorCriticNetwork(
        spec.observation, actions, core="elstm", units=4, encoder_units=(4,), normalize_observation=kind == "ac"
    )
    if kind == "ac":
        made, optimizer, settings = StreamACAgent, ObGD(0.5), StreamACConfig()
    else:
        made, optimizer, settings = TDLambdaAgent, keras.optimizers.Adam(0.01), TDLambdaConfig(lambda_value=0.5)
    counter = tf.Variable(0, dtype=tf.int64)
    return env, made(spec, actions, network, optimizer, num_streams=1, config=settings, train_step_counter=counter)


def exported(agent, folder):
    module = AgentLearner(agent)
    tf.saved_model.save(module, str(folder / "agent"), signatures=module.signatures())
    return module


def chains(observations, length):
    """What a fresh process needs to play the same chains."""
    bits = observations[np.abs(observations[:, 0]) == 1, 0] > 0
    return {"bits": bits.astype(int), "length": length}


def serve(folder, steps, cut, **given):
    """What a fresh process said."""
    np.savez(folder / "in.npz", **given)
    words = [sys.executable, str(PROGRAM), str(folder), str(steps), str(cut)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "out.npz"))


def learned(kind, folder):
    """What a fresh process said, the state by the trainer's own driver and agent, and what they did meanwhile."""
    env, agent = play_and_learn(kind)
    module = exported(agent, folder)
    rows = []

    @tf.function(autograph=False)
    def train(rollout):
        info = agent.train(rollout)
        value = info.extra.value if kind == "ac" else info.extra.prediction
        return rollout.action[0, 0], value, info.extra.td_error, rollout.observation["observation"][0, 0]

    driver = RolloutDriver(env, agent.collect_policy, [lambda rollout: rows.append(train(rollout))], num_steps=1)
    for _ in range(STEPS - 1):
        driver.run()
    actions, values, errors, observations = (np.array(column) for column in zip(*rows, strict=True))
    state = {name: value.numpy() for name, value in module.get().items()}
    return serve(folder, STEPS, CUT, **chains(observations, LENGTH)), state, (actions, values, errors)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return learned("ac", tmp_path_factory.mktemp("learned"))


def check_equal(out, state, trained):
    actions, values, errors = trained
    assert 0.2 < actions.mean() < 0.8
    np.testing.assert_array_equal(out["action"][:-1, 0], actions)
    if "prediction" in out:  # normalised, a step is taken in after it is acted on, and before it is learnt from
        np.testing.assert_allclose(out["prediction"][:-1, 0], values, atol=1e-5)
    np.testing.assert_allclose(out["td_error"][1:], errors, atol=1e-5)
    compared = [name for name in state if name.partition("_")[0] in SHARED]
    for name in compared:
        np.testing.assert_allclose(out[name], state[name], atol=1e-5, rtol=1e-4, err_msg=name)
    return compared


def test_acts_and_learns_as_the_trainer_does(both):
    compared = check_equal(*both)
    assert {name.partition("_")[0] for name in compared} == SHARED
    out, _, _ = both
    moved = [name for name in compared if np.abs(out[name] - out.get(f"snapshot_{name}", 0)).max() > 1e-3]
    assert {"observations_mean", "rewards_mean", "learner_carry_S", "learner_eligibility_actor"} <= set(moved)
    assert any("kernel" in name for name in moved)
    assert out["applied"].tolist() == [t % EPISODE > 0 for t in range(STEPS)]
    assert {name: int(out[f"count_{name}"]) for name in ("steps", "updates", "skipped", "held")} == {
        "steps": STEPS, "updates": int(out["applied"].sum()), "skipped": 0, "held": 0
    }  # fmt: skip


def test_files_hold_stock_operations(both):
    out, _, _ = both
    assert not out["foreign"].tolist()
    assert out["planted"].tolist() == ["KerasRtrlMadeUp"]
    assert out["signatures"].tolist() == SIGNATURES


def test_goes_on_from_its_state_bit_for_bit(both):
    out, _, _ = both
    again = {name.partition("/")[2]: value for name, value in out.items() if name.startswith("again/")}
    assert {"generator", "frame_action", "policy_state", "learner_returns", "action", "td_error"} <= set(again)
    for name, value in again.items():
        np.testing.assert_array_equal(value, out[name], err_msg=name)


class Recording(runners.InGraph):
    """The trainer's own loop, which also tells the actions and what was seen."""

    def _records(self):
        return [*super()._records(), (tf.int64, [1]), (tf.float32, [1, 2])]

    def _record(self, before, rollout):
        return [*super()._record(before, rollout), rollout.action[:, 0], rollout.observation["observation"][:, 0]]

    def _outcome(self, losses, records, counters):
        *records, self.actions, self.observations = records
        return super()._outcome(losses, records, counters)


@pytest.mark.slow
def test_ten_thousand_steps_of_the_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "InGraph", Recording)
    steps = 10_000
    config.load(config.find("stream_ac_memory"), [f"train.frames = {steps}", f"train.log_updates = {steps}"])
    parts = setup.make(RunFolder(tmp_path / "run"), building.training(), False)
    with contextlib.closing(parts.run):
        module = exported(parts.agent, tmp_path)
        outcome = parts.runner.run(steps, checkpoints.Counters())
    observations = np.concatenate([parts.runner.observations[:, 0], [[1, 0]]])
    out = serve(tmp_path, steps, 0, **chains(observations, 8))
    np.testing.assert_array_equal(out["action"], parts.runner.actions)
    assert out["reward"][10::11].tolist()[: len(outcome.returns)] == outcome.returns
    for name, value in module.get().items():
        if name.startswith("weight"):
            np.testing.assert_allclose(out[name], value, atol=1e-2, err_msg=name)  # XLA rounds; a relu enlarges that


@pytest.mark.full
def test_predicts_as_the_trainer_does(tmp_path):
    out, *expected = learned("td", tmp_path)
    check_equal(out, *expected)


def anything(kind):
    """An environment of another kind, and an agent whose encoder is fixed, or sees images."""
    keras.utils.set_random_seed(3)
    name, options = {"continuous": ("Pendulum-v1", {}), "images": ("ALE/Breakout-v5", {"stack_num": 1})}[kind]
    env = environments.with_history(environments.make(name, num_envs=1, seed=3, **options))
    spec, actions = (tensor_spec.from_spec(spec) for spec in (env.time_step_spec(), env.action_spec()))
    given = {"encoder": "nature_cnn"} if kind == "images" else {"encoder_units": (4,), "train_encoder": False}
    network = ActorCriticNetwork(
        spec.observation, actions, core="rtu", units=4, normalize_observation=kind == "continuous", **given
    )
    counter = tf.Variable(0, dtype=tf.int64)
    made = StreamACAgent(spec, actions, network, ObGD(0.5), num_streams=1, train_step_counter=counter)
    return env, made


@pytest.mark.full
@pytest.mark.parametrize("kind", ["continuous", "images"])
def test_other_observations_and_actions(kind, tmp_path):
    """What the trainer saw is played again to the file: it acts as the agent did."""
    env, agent = anything(kind)
    module = exported(agent, tmp_path)
    seen, before = [], (np.zeros(1, "float32"), np.ones(1, "float32"))

    def record(rollout):
        nonlocal before
        agent.train(rollout)
        observation, kind = rollout.observation["observation"][:, 0].numpy(), rollout.step_type[:, 0].numpy()
        seen.append((observation, *before, kind, rollout.action[:, 0].numpy()))
        before = rollout.reward[:, 0].numpy(), rollout.discount[:, 0].numpy()

    driver = RolloutDriver(env, agent.collect_policy, [record], num_steps=1)
    for _ in range(249):  # an episode of Pendulum has 200 steps
        driver.run()
    state = {name: value.numpy() for name, value in module.get().items()}
    driver.run()  # the file has not learnt from this one
    names = ("observation", "reward", "discount", "step_type", "action")
    columns = dict(zip(names, zip(*seen, strict=True), strict=True))
    out = serve(tmp_path, len(seen), 0, **{name: np.concatenate(column) for name, column in columns.items()})
    np.testing.assert_allclose(out["action"], np.stack(columns["action"]), atol=1e-4)
    assert len(np.unique(out["action"])) > 2
    weights = [name for name in state if name.startswith("weight")]
    assert weights
    for name in weights:
        np.testing.assert_allclose(out[name], state[name], atol=1e-4, err_msg=name)


# Its rules, in this process.


@pytest.fixture(scope="module")
def made():
    module = AgentLearner(play_and_learn("ac")[1])
    return module, {name: value.numpy() for name, value in module.get().items()}


@pytest.fixture
def agent(made):
    """The learner as it was made, after two steps of an episode."""
    module, start = made
    call(module.set, **start)
    step(module, FIRST, [1.0, 0.0])
    step(module, MID, [0.0, 0.0])
    return module


def call(function, **given):
    return {name: value.numpy() for name, value in function(**{k: tf.constant(v) for k, v in given.items()}).items()}


def inputs(step_type=MID, observation=(0.0, 1.0), reward=0.5, discount=1.0):
    return {
        "observation": np.array([observation], "float32"),
        "reward": np.array([reward], "float32"),
        "discount": np.array([discount], "float32"),
        "step_type": np.array([step_type], "int32"),
    }


def step(module, *given, **more):
    return call(module.step, **inputs(*given, **more))


def changed(before, after):
    """The first words of the names of what differs."""
    return {name.partition("_")[0] for name in before if not np.array_equal(before[name], after[name])}


WRONG_INPUTS = [
    ({"observation": np.array([[np.nan, 0]], "float32")}, "observation must be finite"),
    ({"reward": np.array([np.nan], "float32")}, "reward must be finite"),
    ({"reward": np.array([np.inf], "float32")}, "reward must be finite"),
    ({"discount": np.array([1.5], "float32")}, "discount must lie in 0..1, got"),
    ({"step_type": np.array([3], "int32")}, "step_type must lie in 0..2, got"),
    ({"observation": np.zeros((2, 2), "float32")}, r"observation"),
    ({"observation": np.zeros((1, 3), "float32")}, r"observation"),
    ({"reward": np.zeros((1, 1), "float32")}, r"reward"),
    ({"reward": np.zeros(1)}, "float"),
    ({"step_type": np.zeros(1, "int64")}, "int32"),
    ({"reward": None}, "missing a required argument: 'reward'"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_INPUTS)
def test_wrong_inputs_change_nothing(agent, wrong, message):
    before = call(agent.get)
    given = {name: value for name, value in {**inputs(), **wrong}.items() if value is not None}
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError, ValueError), match=message):
        call(agent.step, **given)
    assert not changed(before, call(agent.get))


def put(agent, **values):
    """Replaces a part of its state; returns the whole."""
    state = call(agent.get)
    call(agent.set, **{**state, **values})
    return {**state, **values}


def test_an_update_that_is_not_finite_is_skipped_and_counted(agent):
    large = np.full((1, 4, 1), 3e38, "float32")  # the square overflows
    before = put(agent, learner_carry_state=large)
    said = step(agent)
    assert not said["applied"]
    assert said["action"] in (0, 1)
    assert changed(before, call(agent.get)) == {"count", "frame", "policy", "generator"}
    assert call(agent.info) == {"steps": 3, "updates": 1, "skipped": 1, "held": 0, "frozen": False}
    step(agent, LAST)
    assert not step(agent, FIRST)["applied"]
    assert step(agent)["applied"]  # a new episode is a new state


def test_a_step_that_is_not_finite_holds_the_action(agent):
    step(agent)  # what is normalised is zero at the first step, and so are the traces after it
    before = put(agent, weight_ActorCriticNetwork_value_bias=np.array([3e38], "float32"))
    assert before["policy_state"].any()
    assert step(agent)["action"] == before["frame_action"]
    after = call(agent.get)
    assert not changed(before, after) & {"policy", "weight", "learner"}
    assert (after["count_held"], after["count_skipped"]) == (1, 1)
    step(agent, FIRST)  # no state of the episode before
    assert not call(agent.get)["policy_state"].any()
    assert call(agent.get)["learner_carry_S"].any()
    step(agent)
    assert not call(agent.get)["learner_carry_S"].any()


def test_frozen_it_acts_and_carries_move(agent):
    call(agent.freeze)
    before = call(agent.get)
    assert not step(agent)["applied"]
    assert changed(before, call(agent.get)) == {"count", "frame", "policy", "generator", "learner"}
    assert call(agent.info) == {"steps": 3, "updates": 1, "skipped": 0, "held": 0, "frozen": True}
    call(agent.thaw)
    assert step(agent)["applied"]


def test_rollback_puts_back_what_it_knows(agent):
    kept = call(agent.get)
    call(agent.snapshot)
    for _ in range(3):
        step(agent)
    assert {"weight", "optimizer", "observations", "rewards"} <= changed(kept, call(agent.get))
    call(agent.rollback)
    assert changed(kept, call(agent.get)) == {"count", "frame", "policy", "generator", "learner", "snapshot"}


def test_after_a_reset_nothing_is_learnt_from_the_step_before(agent):
    call(agent.reset)
    state = call(agent.get)
    carried = [name for name in state if name.startswith(("learner", "policy"))]
    assert carried
    assert not any(state[name].any() for name in carried)
    said = step(agent, FIRST)
    assert not said["applied"]
    assert said["td_error"] == 0
    assert not changed(state, call(agent.get)) & {"weight", "learner"}
    assert step(agent)["applied"]


def test_termination_is_told_from_truncation(made):
    module, start = made
    errors = []
    for discount in (0.0, 1.0):
        call(module.set, **start)
        value = step(module, FIRST, [1.0, 0.0])["value"]
        errors.append(step(module, LAST, discount=discount)["td_error"] + value)
        assert not step(module, FIRST)["applied"]
    assert abs(errors[0] - errors[1]) > 1e-3


# The command.


def test_agents_that_learn_from_rollouts_are_refused(tmaze_run, tmp_path, capsys):
    assert cli.main(["export", str(tmaze_run), str(tmp_path / "out"), "--learner"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "agents that learn at every step, stream_ac and td_lambda; this is 'r2ac'" in line
    assert not list(tmp_path.iterdir())
