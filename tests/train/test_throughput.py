"""`keras-rtrl bench env`."""

import re

import pytest

from keras_rtrl.train import cli, config, loop, runners, throughput  # noqa: F401  loop: its settings are in the preset

TINY = (
    "environment.num_envs = 2",
    "ActorCriticNetwork.encoder = 'mlp'",
    "ActorCriticNetwork.encoder_units = (8,)",
    "ActorCriticNetwork.units = 8",
    "train.rollout_length = 4",
)


def test_end_to_end_takes_all_three_parts():
    config.load(config.find("atari_r2ac_cpu"), [*TINY, "environment.name = 'CartPole-v1'"])
    rates = throughput.measure(7)
    assert rates.allowed == pytest.approx(1 / (1 / rates.environment + 1 / rates.policy + 1 / rates.learner))
    assert rates.end_to_end < 2 * min(rates.environment, rates.policy, rates.learner)  # 2: machines are noisy


def test_the_command_prints_the_four_rates(capsys):
    bindings = [word for binding in TINY for word in ("--gin", binding)]
    assert cli.main(["bench", "env", "CartPole-v1", "--preset", "atari_r2ac_cpu", "--rounds", "2", *bindings]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(environment|policy|learner|end to end) +[\d,]+ ", text, re.MULTILINE) == [
        "environment",
        "policy",
        "learner",
        "end to end",
    ]


def test_training_that_overlaps(capsys, monkeypatch):
    runs, run = [], runners.Overlapping.run
    monkeypatch.setattr(runners.Overlapping, "run", lambda *given: runs.append(given) or run(*given))
    bindings = [word for binding in (*TINY, "train.overlap = True") for word in ("--gin", binding)]
    assert cli.main(["bench", "env", "CartPole-v1", "--preset", "atari_r2ac_cpu", "--rounds", "2", *bindings]) == 0
    assert re.search(r"^end to end +[\d,]+ ", capsys.readouterr().out, re.MULTILINE)
    assert len(runs) == throughput.WARM_UP + 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TMaze-v0"], "in-graph"),
        (["NoSuch-v0", "--preset", "tmaze_r2ac"], "NoSuch-v0"),
    ],
)
def test_bad_input_is_one_line(capsys, words, message):
    assert cli.main(["bench", "env", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_environment_of_no_preset(capsys, monkeypatch):
    """As one of a new family is, until it has a preset."""
    monkeypatch.setattr(config, "presets", lambda: ["tmaze_r2ac"])
    assert cli.main(["bench", "env", "CartPole-v1"]) == 2
    assert capsys.readouterr().err == "keras-rtrl: error: no preset has such an environment: name one with --preset\n"
