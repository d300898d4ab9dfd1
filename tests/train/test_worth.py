"""`keras-rtrl worth`: what it measures of a run, and that the run stays as it was."""

import csv
import hashlib
import shutil

import pytest
import tensorflow as tf

from keras_rtrl.diagnostics import GradientWorth
from keras_rtrl.train import cli
from keras_rtrl.train import worth as told

PPO = (
    'agent.name = "ppo"',
    'ActorCriticNetwork.core = "rtu"',
    "ActorCriticNetwork.core_options = {'r_min': 0.9}",
    "PPOConfig.chunk = 2",
    "PPOConfig.num_minibatches = 4",
    "PPOConfig.num_epochs = 2",
)


def worth(run, *words):
    """The rows of worth.csv by name, figures as numbers."""
    assert cli.main(["worth", str(run), *words]) == 0
    with open(run / "worth.csv") as file:
        rows = list(csv.DictReader(file))
    return {row["gradient"]: {k: float(v) for k, v in row.items() if v and k != "gradient"} for row in rows}


def contents(run):
    """Digests of all that a run's folder holds, but for what `worth` writes."""
    files = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith("worth.")]
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}


def changed(run, path, *pairs):
    """A copy of a run, with other settings."""
    shutil.copytree(run, path)
    text = (path / "config.gin").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (path / "config.gin").write_text(text)
    return path


def test_run_is_measured_and_not_changed(tmp_path, tmaze_run, capsys):
    pairs = ("'corridor': 3", "'corridor': 10"), ("train.rollout_length = 5", "train.rollout_length = 4")
    run = changed(tmaze_run, tmp_path / "run", *pairs, ("train.learning_rate = 0.01", "train.learning_rate = 0.0"))
    before = contents(run)

    found = worth(run, "--steps", "16", "--rollouts", "2")
    assert list(found) == [
        "exact",
        "rtrl",
        "rtrl_carried_state",
        "tbptt_chunks_4",
        *(f"tbptt_{2**i}" for i in range(5)),
    ]
    for name in ("rtrl", "rtrl_carried_state", "tbptt_16"):  # the weights stay; a game takes 12 steps
        assert found[name]["cosine"] == pytest.approx(1, abs=1e-5)
        assert found[name]["norm_ratio"] == pytest.approx(1, abs=1e-5)
        assert found[name]["difference"] < 1e-4
    assert found["tbptt_1"]["cosine"] < found["tbptt_8"]["cosine"] < 1
    assert found["tbptt_chunks_4"]["cosine"] < 0.999
    assert 0 < found["exact"]["noise"] < 10
    assert {"cosine_error", "cosine_kernel", "cosine_w_f"} <= set(found["rtrl"])
    assert contents(run) == before
    assert (run / "worth.png").stat().st_size > 10_000

    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("2 rollouts of 4 steps, 4 of 4 streams, 16 steps of history before each; 100 % of the")
    assert out[-2].startswith("This task's gradient reaches back about ")
    assert out[-1].startswith("Of each weight alone, in steps: kernel ")  # no encoder here
    reached = int(out[-2].split()[6])
    assert found[f"tbptt_{reached}"]["cosine"] >= 0.99
    assert reached == 1 or found[f"tbptt_{reached // 2}"]["cosine"] < 0.99


@pytest.mark.parametrize(("weight", "sentence", "line"), [
    (0.0, "How far back the gradient reaches cannot be said: in at least one of 3 rollouts the exact gradient is zero",
     "idle unknown (zero gradient), w unknown (zero gradient)."),
    (1.0, "This task's gradient reaches back about 1 step: cut off after 1 it has cosine 1.000",
     "idle unknown (zero gradient), w 1."),
])  # fmt: skip
def test_a_zero_gradient_has_no_reach(weight, sentence, line):
    weights = {"idle": tf.Variable([1.0]), "w": tf.Variable([2.0])}
    meter = GradientWorth(lambda inputs, carry: (inputs * weights["w"], carry), weights)
    inputs = tf.ones([2, 4, 1])
    estimates = meter.measure(inputs, tf.zeros([2, 4, 1]), weight * tf.ones([2, 2, 1]), steps=2)
    found = told.Worth(estimates, [0.0] * len(estimates), meter.names, 2, (3, 2, 2, 2), 1.0, None)
    assert told.sentence(found).startswith(sentence)
    assert told.by_weight(found).endswith(line)


@pytest.mark.parametrize(("trained", "gradient"), [(True, "rtrl"), (True, "instant"), (False, "rtrl")])
def test_the_encoders_gradient_is_cut_off_as_the_run_does(tmp_path, tiny_tmaze, capsys, trained, gradient):
    bindings = [
        f"ActorCriticNetwork.gradient = '{gradient}'",
        "ActorCriticNetwork.encoder_units = (4,)",
        f"ActorCriticNetwork.train_encoder = {trained}",
        "environment.options = {'corridor': 10}",
        "train.learning_rate = 0.0",
        "train.rollout_length = 8",
    ]
    assert tiny_tmaze("--frames", "64", "--out", str(tmp_path / "run"), bindings=bindings) == 0
    capsys.readouterr()
    found = worth(tmp_path / "run", "--steps", "16", "--rollouts", "1")
    last = capsys.readouterr().out.splitlines()[-1]
    if trained:
        assert found["tbptt_chunks_8"]["cosine_encoder"] < 0.999
        assert found["tbptt_16"]["cosine_encoder"] == pytest.approx(1, abs=1e-5)  # a game takes 12 steps
        assert "cosine_encoder" not in found.get("rtrl", {})  # its traces do not reach there
        own, cut = "tbptt_chunks_8", "at the run's chunks of 8"
        if gradient == "instant":
            own, cut = "tbptt_1", "at each step"
        told = f"Traces do not reach into the encoder: cut off {cut}, its gradient has cosine "
        assert last == f"{told}{found[own]['cosine_encoder']:.3f} with its exact one."
        assert found["tbptt_1"]["cosine_encoder"] < found["tbptt_chunks_8"]["cosine_encoder"] - 0.001
    else:
        assert "cosine_encoder" not in found["exact"]
        assert last.startswith("Of each weight alone, in steps: kernel ")


@pytest.mark.full
@pytest.mark.parametrize("gradient", ["rtrl", "instant"])
def test_traces_of_ppo_are_stale_under_large_steps(tmp_path, tiny_tmaze, gradient):
    bindings = [
        *PPO,
        "train.learning_rate = 0.02",
        "train.final_learning_rate = 0.0",  # what the run ends at is not what it is measured with
        "train.rollout_length = 8",
        "environment.options = {'corridor': 10}",
        f"ActorCriticNetwork.gradient = '{gradient}'",
    ]
    assert tiny_tmaze("--frames", "64", "--out", str(tmp_path / "run"), bindings=bindings) == 0
    found = worth(tmp_path / "run", "--steps", "16", "--rollouts", "2")
    assert ("rtrl" in found) == (gradient == "rtrl")
    assert found["tbptt_16"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert found["tbptt_1"]["cosine"] < 0.999
    if gradient == "rtrl":
        assert found["rtrl"]["cosine"] < 0.9999
        assert found["rtrl_carried_state"]["cosine"] < 0.9999


@pytest.mark.full
def test_cores_of_keras_are_measured_too(tmp_path, tiny_tmaze):
    bindings = [
        'ActorCriticNetwork.core = "gru"',
        "ActorCriticNetwork.core_options = None",
        "ActorCriticNetwork.gradient = None",
    ]
    assert tiny_tmaze("--frames", "80", "--out", str(tmp_path / "run"), bindings=bindings) == 0
    found = worth(tmp_path / "run", "--steps", "8", "--rollouts", "1")
    assert "rtrl" not in found
    assert found["tbptt_8"]["cosine"] == pytest.approx(1, abs=1e-5)


def test_runs_that_learn_at_every_step_are_refused(tmp_path, tmaze_run, capsys):
    run = changed(tmaze_run, tmp_path / "run")
    (run / "config.gin").write_text(f"{(run / 'config.gin').read_text()}agent.name = 'td_lambda'\n")
    assert cli.main(["worth", str(run)]) == 2
    expected = "worth measures agents that learn from rollouts, r2ac and ppo; this is 'td_lambda'"
    assert capsys.readouterr().err == f"keras-rtrl: error: {run}: {expected}\n"
    assert not (run / "worth.csv").exists()


def test_history_that_does_not_fit_into_memory_is_refused(tmaze_run, capsys):
    assert cli.main(["worth", str(tmaze_run), "--steps", "1000000000000"]) == 2
    assert "--steps 1000000000000" in capsys.readouterr().err
