"""Every agent by its name: what its run leaves, how it resumes, how its predictions are scored; the presets."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_agents  # noqa: F401
import tf_keras

from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.train import building, checkpoints, cli, config, loop, metrics, optimizers, runners  # noqa: F401

NETWORK = """
environment.num_envs = 1
ActorCriticNetwork.encoder_units = ()
ActorCriticNetwork.core = "rtu"
ActorCriticNetwork.units = 6
train.rollout_length = 1
train.optimizer = @Adam
train.learning_rate = 1e-2
train.final_learning_rate = 1e-2
train.log_updates = 100
"""
PREDICT = NETWORK + 'agent.name = "td_lambda"\nenvironment.name = "TraceConditioning-v0"\n'
AGENTS = {
    "td_lambda": PREDICT + "TDLambdaConfig.lambda_value = 0.5\n",
    "stream_ac": NETWORK
    + 'agent.name = "stream_ac"\nenvironment.name = "MemoryChain-v0"\nenvironment.options = {"length": 3}\n'
    + "ActorCriticNetwork.normalize_observation = True\n",
    "ppo": NETWORK
    + 'agent.name = "ppo"\nenvironment.name = "TMaze-v0"\nenvironment.options = {"corridor": 3}\n'
    + "environment.num_envs = 2\ntrain.rollout_length = 8\ntrain.log_updates = 2\n"
    + "PPOConfig.chunk = 4\nPPOConfig.num_epochs = 2\nPPOConfig.num_minibatches = 2\n",
}


def train(folder, agent, frames, *words):
    (folder / "tiny.gin").write_text(AGENTS[agent])
    return cli.main(["train", str(folder / "tiny.gin"), "--frames", str(frames), "--out", str(folder / "run"), *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an agent's finished run, trained once."""
    folders = {}

    def run(agent, frames):
        if agent not in folders:
            folders[agent] = tmp_path_factory.mktemp(agent)
            assert train(folders[agent], agent, frames) == 0
        return folders[agent]

    return run


def rows(folder):
    """metrics.csv without what depends on the clock."""
    kept = metrics.read(folder / "run" / "metrics.csv")
    return [{k: v for k, v in row.items() if "second" not in k} for row in kept]


def saved(folder):
    reader = tf.train.load_checkpoint(str(folder / "run" / "checkpoints"))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "counters" not in name and "save_counter" not in name and "OBJECT_GRAPH" not in name
    }


@pytest.mark.parametrize(
    ("agent", "part", "whole"),
    [
        # What they save is tested by itself.
        pytest.param("td_lambda", 500, 900, marks=pytest.mark.full),
        pytest.param("stream_ac", 500, 900, marks=pytest.mark.full),
        ("ppo", 96, 160),
    ],
)
def test_resumed_equals_uninterrupted(finished, tmp_path, agent, part, whole):
    one = finished(agent, whole)
    assert train(tmp_path, agent, part) == 0
    first = rows(tmp_path)
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--frames", str(whole)]) == 0
    assert rows(tmp_path)[: len(first)] == first
    assert rows(tmp_path) == rows(one)
    a, b = saved(tmp_path), saved(one)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_run_that_overlaps_repeats_and_goes_on(tmp_path):
    words = ["--gin", "environment.name = 'CartPole-v1'", "--gin", "environment.options = None"]
    for name, overlap in {"one": True, "two": True, "in turn": False}.items():
        (tmp_path / name).mkdir()
        assert train(tmp_path / name, "ppo", 320, *words, "--gin", f"train.overlap = {overlap}") == 0
    first = rows(tmp_path / "one")
    assert first == rows(tmp_path / "two")
    assert first != rows(tmp_path / "in turn")
    assert int(first[-1]["games"]) > 5
    assert cli.main(["train", "--resume", str(tmp_path / "one" / "run"), "--frames", "640"]) == 0
    assert rows(tmp_path / "one")[: len(first)] == first
    assert [row["frames"] for row in rows(tmp_path / "one")[-2:]] == ["608", "640"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["train.strategy = 'mirrored'"], "train.overlap must be False with train.strategy 'mirrored', got True"),
        (["actors.num_actors = 1"], "train.overlap must be False with actors, which act meanwhile, got True"),
    ],
)
def test_what_does_not_overlap(tmp_path, capsys, words, names):
    words = ["environment.name = 'CartPole-v1'", "environment.options = None", "train.overlap = True", *words]
    assert train(tmp_path, "ppo", 320, *[word for binding in words for word in ("--gin", binding)]) == 2
    assert names in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_checkpoint_holds_all_that_a_streaming_agent_learns(finished):
    names = " ".join(name for name, value in saved(finished("stream_ac", 900)).items() if np.any(value != 0))
    for part in ("_eligibility", "_normalizer", "carry", "_generator", "_optimizer", "_reward_scaler"):
        assert part in names, part


def test_ppo_has_its_columns_and_the_learning_rate_reaches_its_end(tmp_path, capsys):
    words = ["--gin", "train.final_learning_rate = 0.0"]
    assert train(tmp_path, "ppo", 128, *words) == 0  # 8 updates of 4 optimiser steps
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["store_bytes"] == 2 * record["carry_bytes"] > 0  # 2 chunks a stream
    for name, fact in (("the learner's carry", "carry_bytes"), ("carries stored of each rollout", "store_bytes")):
        assert f"{name}: {record[fact] / 2**20:.2f} MiB" in out
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    common = len(metrics.COLUMNS)
    assert header[:common] == list(metrics.COLUMNS)
    assert header[common : common + 2] == ["loss", "policy_loss"]
    assert "clip_fraction" in header
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows(tmp_path)], [7.5e-3, 5e-3, 2.5e-3, 0.0])


def test_predictions_have_errors_and_no_games(finished, capsys):
    run = finished("td_lambda", 900) / "run"
    kept = rows(run.parent)
    assert [row["games"] + row["mean_return"] for row in kept] == [""] * 9
    assert [row["return_error"] == "" for row in kept] == [True, True, *[False] * 7]  # 200 steps late
    assert json.loads((run / "run.json").read_text())["recurrent_parameters"] == 2 * 6 + 2 * 6 * 14  # r, theta; gates
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["evaluate", str(run)]) == 2
    assert "no games" in capsys.readouterr().err


def predictor():
    """An environment and an agent that predicts, the same at each call."""
    tf_keras.utils.set_random_seed(0)
    env = building.environment(5)
    agent = building.agent(env, building.network(env), optimizers.Adam(1e-2), building.agent_config())
    return env, agent


def test_errors_are_those_of_returns_computed_after_the_run(tmp_path):
    (tmp_path / "tiny.gin").write_text(AGENTS["td_lambda"])
    config.load(str(tmp_path / "tiny.gin"))
    env, agent = predictor()
    runner = runners.make_runner(env, agent, 1, 200)
    counters = checkpoints.Counters()
    errors = np.concatenate([runner.run(n, counters).errors for n in (1, 150, 48, 1, 1, 200)])
    assert len(errors) == 401 - 200

    env, agent = predictor()
    seen, step = [], tf.function(agent.train, autograph=False)
    ideal = []
    driver = RolloutDriver(
        env, agent.collect_policy, [lambda x: seen.append((step(x), x.reward[0, 0].numpy()))], num_steps=1
    )
    for _ in range(401):
        ideal.append(env.ideal_prediction().numpy()[0])
        driver.run()
    returns = np.zeros(402)
    for t in reversed(range(401)):
        returns[t] = seen[t][1] + 0.9 * returns[t + 1]
    guesses = [[info.extra.prediction for info, _ in seen], np.full(401, env.mean_return), ideal]
    expected = np.square(np.array(guesses, float).T - returns[:-1, np.newaxis])[:201]
    np.testing.assert_allclose(errors[:, 0], expected[:, 0], atol=1e-3)  # 400 updates apart, eager and compiled
    np.testing.assert_allclose(errors[:, 1:], expected[:, 1:], atol=1e-6)
    assert expected[:, 0].std() > 0.05


@pytest.mark.parametrize(
    ("agent", "binding", "names"),
    [
        ("td_lambda", "environment.name = 'TMaze-v0'", "TraceConditioning-v0"),
        ("td_lambda", "TDLambdaConfig.gamma = 0.99", "gamma must be at most"),
        ("td_lambda", "train.rollout_length = 2", "train.rollout_length must be 1"),
        ("stream_ac", "train.rollout_length = 20", "train.rollout_length must be 1"),
        ("stream_ac", "environment.num_envs = 2", "num_streams must be 1"),
        ("ppo", "PPOConfig.chunk = 3", "chunk must divide the rollout's 8 steps"),
        ("ppo", "PPOConfig.num_minibatches = 3", "minibatches must divide the 4 chunks"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, agent, binding, names):
    assert train(tmp_path, agent, 100, "--gin", binding) == 2
    assert names in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


PAPERS = [pytest.param(f"ppo_rtu_{family}_paper", marks=pytest.mark.full) for family in ("mujoco", "popgym")]


@pytest.mark.parametrize(
    "preset", ["ppo_rtu_mujoco_p", "ppo_rtu_popgym", *PAPERS, "stream_ac_memory", "td_trace_conditioning"]
)
def test_runs_of_a_preset_can_be_set_up(preset):
    for family in ("mujoco", "popgym"):
        if family in preset:
            pytest.importorskip(family)
    config.load(config.find(preset))
    tasks, conditions = (list(groups.values()) for groups in config.sweep())
    pairs = [(tasks[0], condition) for condition in conditions] + [(task, conditions[0]) for task in tasks[1:]]
    for task, condition in pairs:
        config.load(config.find(preset), [*task, *condition, "environment.num_envs = 1"])
        env = building.environment(0)
        agent = building.agent(env, building.network(env), optimizers.Adam(1e-3), building.agent_config())
        if preset.startswith("ppo"):  # equal counts, whatever the core
            count = sum(variable.shape.num_elements() for variable in agent.network.core_variables)
            assert count == pytest.approx(24_960, rel=0.01)
