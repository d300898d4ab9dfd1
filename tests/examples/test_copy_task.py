"""The copy task: what its streams hold, that its scores cannot be had by counting, and that it is learned."""

import csv
import itertools
import json
import pathlib
import sys

import numpy as np
import pytest

from keras_rtrl._keras import LEGACY

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples import copy_task  # noqa: E402

pytestmark = pytest.mark.skipif(LEGACY, reason="once is enough: the layers' own tests run on both Keras")

L = 50


def test_streams_hold_patterns_blanks_and_answers():
    tokens, reset, bits, asked = copy_task.CopyStreams(8, 5, np.random.default_rng(0)).take(400)
    lengths = []
    for row in range(8):
        starts = np.flatnonzero(reset[row])
        assert starts[0] == 0
        for begin, end in itertools.pairwise(starts):
            t = (end - begin) // 2
            lengths.append(t)
            pattern, answers = slice(begin, begin + t), slice(begin + t, end)
            assert end - begin == 2 * t
            assert not asked[row, pattern].any()
            assert asked[row, answers].all()
            assert (tokens[row, answers] == copy_task.BLANK).all()
            np.testing.assert_array_equal(bits[row, answers], tokens[row, pattern])
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert set(tokens[~asked]) == {0, 1}


def test_streams_continue_from_call_to_call_and_repeat_by_seed():
    def streams(seed):
        return copy_task.CopyStreams(4, 7, np.random.default_rng(seed))

    one, two, other = streams(3), streams(3), streams(4)
    pieces = [one.take(30), one.take(1), one.take(29)]
    for together, *cut in zip(two.take(60), *pieces, strict=True):
        np.testing.assert_array_equal(np.concatenate(cut, axis=1), together)
    assert (other.take(60)[0] != streams(3).take(60)[0]).any()


def test_held_out_sequences_are_whole_and_one_a_row():
    tokens, _, bits, asked = copy_task.held_out(200, L, np.random.default_rng(0))
    assert tokens.shape == (200, 2 * L)
    t = asked.sum(axis=1)
    assert t.min() <= 3
    assert t.max() >= L - 2
    for row in range(200):
        np.testing.assert_array_equal(np.flatnonzero(asked[row]), np.arange(t[row], 2 * t[row]))
        np.testing.assert_array_equal(bits[row, asked[row]], tokens[row, : t[row]])


def test_counting_alone_scores_chance():
    tokens, _, bits, asked = copy_task.held_out(2000, L, np.random.default_rng(1))
    blank = np.cumsum(tokens == copy_task.BLANK, axis=1)  # what a counter knows: pattern or answer, and how far
    for guess in (np.ones_like(bits), np.zeros_like(bits), blank % 2, np.cumsum(tokens != copy_task.BLANK, axis=1) % 2):
        logits = np.where(tokens == copy_task.BLANK, 2.0 * guess - 1, -9.0)
        of_bits, of_sequences = copy_task.scores(logits, bits, asked)
        assert abs(of_bits - 0.5) < 0.01
        assert of_sequences < 0.04  # the mean of 2^-t is 0.02


def test_scores_see_the_answers_only():
    _, _, bits, asked = copy_task.held_out(100, L, np.random.default_rng(2))
    logits = np.where(asked, 2.0 * bits - 1, np.random.default_rng(3).normal(size=bits.shape))
    assert copy_task.scores(logits, bits, asked) == (1, 1)
    last = 2 * asked[0].sum() - 1
    logits[0, last] *= -1
    assert copy_task.scores(logits, bits, asked) == (1 - 1 / asked.sum(), 0.99)


@pytest.mark.parametrize(
    "words",
    [
        ["--layer", "elstm", "--chunk", "1"],
        ["--layer", "rtu", "--chunk", "7", "--gradient", "tbptt"],
        ["--layer", "lru", "--chunk", "1", "--curriculum"],
    ],
    ids=" ".join,
)
def test_a_run_leaves_its_files(words, tmp_path):
    out = tmp_path / "run"
    copy_task.main([*words, "--length", "3", "--units", "4", "--hidden", "4", "--steps", "20", "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "learning_curve.png", "metrics.csv"]
    config = json.loads((out / "config.json").read_text())
    assert {"layer": words[1], "seed": 1, "length": 3}.items() <= config.items()
    (row,) = rows(out)
    chunk = config["chunk"]
    assert int(row["step"]) == -(-20 // chunk) * chunk
    assert int(row["updates"]) == -(-20 // chunk)
    assert np.isfinite(float(row["loss"]))


def rows(out):
    with open(out / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_equal_seeds_give_equal_runs(tmp_path):
    def loss(name, *more):
        out = tmp_path / name
        words = ["--length", "2", "--units", "4", "--hidden", "4", "--steps", "20", "--chunk", "4", "--out", str(out)]
        copy_task.main([*words, *more])
        return rows(out)[0]["loss"]

    assert loss("one") == loss("other") != loss("annealed", "--anneal")


@pytest.mark.slow
def test_short_patterns_are_learned(tmp_path):
    out = tmp_path / "run"
    copy_task.main(["--length", "5", "--steps", "5000", "--out", str(out)])
    assert float(rows(out)[-1]["sequence_accuracy"]) > 0.95  # counting alone: 0.19


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--layer", "lstm"], "--layer"),
        (["--gradient", "bptt"], "--gradient"),
        (["--length", "0"], "--length: must be a whole number of at least 1, got 0"),
        (["--chunk", "0"], "--chunk: must be a whole number of at least 1, got 0"),
        (["--units", "2.5"], "--units"),
        (["--hidden", "-1"], "--hidden: must be a whole number of at least 1, got -1"),
        (["--forget-bias", "much"], "--forget-bias"),
        (["--radii", "0", "1.5"], "--radii: must be between 0 and 1, got 1.5"),
        (["--anneal"], "--anneal: needs --steps, over which the step size falls"),
        (["--radii", "0.9", "0.5"], "--radii: LOW must be below HIGH, got 0.9 and 0.5"),
        (["--rate", "0"], "--rate: must be a number above 0, got 0"),
        (["--seed", "-1"], "--seed: must be a whole number of at least 0 and below 2**32, got -1"),
        (["--steps", "0"], "--steps: must be a whole number of at least 1, got 0"),
        (["--minutes", "nan"], "--minutes: must be a number above 0, got nan"),
        (["--steps", "1", "--minutes", "1"], "--minutes: not allowed with argument --steps"),
        (["--out", "."], "--out must be a folder that does not exist yet"),
    ],
)
def test_bad_arguments(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        copy_task.main(words)
    assert error.value.code not in (0, None)
    assert named in capsys.readouterr().err + str(error.value.code)
    assert not list(tmp_path.iterdir())
