"""Whole games of a run's policy, once or several times."""

import json

import numpy as np
import pytest

from keras_rtrl.train import cli


def evaluate(run, *words):
    """16 games in a corridor of 5, where the run was trained in one of 3."""
    bindings = ["--gin", "environment.options = {'corridor': 5}"]
    assert cli.main(["evaluate", str(run), "--episodes", "16", *bindings, *words]) == 0
    return json.loads((run / "evaluation.json").read_text())


def test_repeats_have_seeds_of_their_own(tmaze_run, capsys):
    one, two = evaluate(tmaze_run, "--seed", "5"), evaluate(tmaze_run, "--seed", "6")
    assert one["lengths"] == [7] * 16
    assert one["returns"] != two["returns"]
    assert one["means"] == [one["mean"]] == [np.mean(one["returns"])]
    assert one["std"] == np.std(one["returns"])
    assert one["std_of_means"] is None
    capsys.readouterr()

    both = evaluate(tmaze_run, "--seed", "5", "--repeats", "2")
    assert both["returns"] == one["returns"] + two["returns"]
    assert both["lengths"] == one["lengths"] + two["lengths"]
    assert both["means"] == [one["mean"], two["mean"]]
    assert both["mean"] == pytest.approx(np.mean(both["returns"]))
    assert both["std"] == pytest.approx(np.std(both["returns"]))
    assert both["std_of_means"] == pytest.approx(abs(one["mean"] - two["mean"]) / 2)
    assert both["options"] == {"corridor": 5}
    assert (both["environment"], both["episodes"], both["repeats"], both["seed"]) == ("TMaze-v0", 16, 2, 5)
    assert both["human_normalized"] is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"repeat 1: mean {one['mean']:.2f}"
    assert lines[-1].endswith(f"standard deviation {both['std_of_means']:.2f} over the means of 2 x 16 games")


@pytest.mark.parametrize(
    ("binding", "names"),
    [
        ("environment.options = {'corridors': 5}", "corridors"),
        ("environment.nothing = 1", "nothing"),
        ("environment.name = 'TMaze-v7'", "TMaze-v7"),
        ("ActorCriticNetwork.units = 9", "no use for ActorCriticNetwork.units"),
        ("train.rollout_length = 9", "no use for train.rollout_length"),
        ("environment.num_envs = 9", "no use for environment.num_envs"),
        ("actors.cpus = 2", "actors.cpus without --actors"),
        ("seed = 9", "nothing uses 'seed'"),
        ("", "sets nothing"),
    ],
)
def test_bad_setting_is_named(tmaze_run, capsys, binding, names):
    before = (tmaze_run / "config.gin").read_text()
    assert cli.main(["evaluate", str(tmaze_run), "--gin", binding]) == 2
    assert names in capsys.readouterr().err
    assert (tmaze_run / "config.gin").read_text() == before


@pytest.mark.parametrize("words", [["--repeats", "0"], ["--episodes", "some"], ["--seed", "-1"]])
def test_bad_arguments(tmaze_run, capsys, words):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["evaluate", str(tmaze_run), *words])
    assert exit_.value.code == 2
    assert words[0] in capsys.readouterr().err
