"""Recall over many chunks: what its sequences hold, who sees a gradient from the first chunk, and what a run leaves."""

import csv
import json
import math
import pathlib
import sys

import numpy as np
import pytest

from keras_rtrl._keras import LEGACY

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples import long_recall  # noqa: E402

pytestmark = pytest.mark.skipif(LEGACY, reason="once is enough: the layers' own tests run on both Keras")

SMALL = ["--length", "12", "--chunk", "4", "--units", "3", "--batches", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(long_recall, "STREAMS", 4)
    monkeypatch.setattr(long_recall, "EPOCH", 2)
    monkeypatch.setattr(long_recall, "HELD_OUT", 1)


def whole(args, seed, first, batches):
    """x, symbols and weights of whole sequences [batches * B, length, ...]."""
    count = args.length // args.chunk
    parts = zip(*long_recall.chunks(args, seed, first, batches), strict=True)

    def join(part):
        groups = [part[i : i + count] for i in range(0, len(part), count)]
        return np.concatenate([np.concatenate(group, axis=1) for group in groups])

    return tuple(join([np.asarray(chunk) for chunk in part]) for part in parts)


def test_sequences_mark_the_first_step_and_ask_the_last():
    args = long_recall.parse(SMALL)
    x, symbols, weights = whole(args, 0, 0, 100)
    assert x.shape == (400, 12, 9)
    shown = x[..., :8].argmax(axis=-1)
    np.testing.assert_array_equal(x[..., :8].sum(axis=-1), 1)
    np.testing.assert_array_equal(x[..., 8], np.broadcast_to(np.arange(12) == 0, (400, 12)))
    np.testing.assert_array_equal(symbols, np.repeat(shown[:, :1], 12, axis=1))
    np.testing.assert_array_equal(weights, np.broadcast_to(12.0 * (np.arange(12) == 11), (400, 12)))
    for step in range(12):  # every step shows all symbols, and no distractor tells of the first
        assert np.bincount(shown[:, step], minlength=8).min() > 20
        if step:
            assert np.mean(shown[:, step] == shown[:, 0]) < 0.2


def test_sequences_are_fresh_and_repeat_by_seed():
    args = long_recall.parse(SMALL)
    x, *_ = whole(args, 3, 0, 4)
    np.testing.assert_array_equal(whole(args, 3, 2, 2)[0], x[8:])
    assert len(np.unique(x.reshape(16, -1), axis=0)) == 16
    assert (whole(args, 4, 0, 4)[0] != x).any()


@pytest.mark.parametrize("kind", long_recall.MODELS)
def test_only_traces_bring_the_loss_to_the_mark(kind):
    """The mark's weights: another chunk's loss moves them by RTRL, and does not move them at all where it is cut."""
    args = long_recall.parse(SMALL)
    model, layer = long_recall.make_model(kind, args)
    before = [weight.numpy() for weight in layer.trainable_weights]
    fresh = long_recall.FreshState(layer)
    model.fit(long_recall.chunks(args, 0, 0, 2), steps_per_epoch=6, callbacks=[fresh], shuffle=False, verbose=0)
    kernel = [weight.name for weight in layer.trainable_weights].index("kernel")
    moved = layer.trainable_weights[kernel].numpy() != before[kernel]
    assert moved[:8].all()
    assert moved[8].all() if kind == "rtrl" else not moved[8].any()


@pytest.mark.parametrize("kind", ["rtrl", "lstm"])
def test_sequences_start_from_zero(kind):
    args = long_recall.parse(SMALL)
    model, layer = long_recall.make_model(kind, args)
    batch = long_recall.chunks(args, 0, 0, 1)
    scores = [
        model.evaluate(batch, steps=3, callbacks=[long_recall.FreshState(layer)], verbose=0, return_dict=True)
        for _ in range(2)
    ]
    assert scores[0] == scores[1]
    assert model.evaluate(batch, steps=3, verbose=0, return_dict=True)["loss"] != scores[0]["loss"]


def test_gates_of_the_lstm_start_as_those_of_elstm():
    args = long_recall.parse(["--length", "100", "--units", "2"])
    assert args.forget_bias == math.log(100)
    _, layer = long_recall.make_model("lstm", args)
    bias = math.log(100) * np.array([-1, -1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(layer.trainable_weights[2], bias, rtol=1e-6)
    _, layer = long_recall.make_model("lstm", long_recall.parse(["--lstm-bias", "keras", "--units", "2"]))
    np.testing.assert_array_equal(layer.trainable_weights[2], [0, 0, 1, 1, 0, 0, 0, 0])


def test_a_run_leaves_its_files(tmp_path, capsys):
    out = tmp_path / "run"
    long_recall.main([*SMALL, "--models", "rtrl", "lstm", "--batches", "3", "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "learning_curve.png", "metrics.csv"]
    config = json.loads((out / "config.json").read_text())
    assert {"length": 12, "chunk": 4, "seeds": 1, "models": ["rtrl", "lstm"]}.items() <= config.items()
    with open(out / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    wanted = [("1", sequences, kind) for sequences in ("8", "16") for kind in ("rtrl", "lstm")]
    assert [(row["seed"], row["sequences"], row["model"]) for row in rows] == wanted
    assert all(np.isfinite(float(row["loss"])) and 0 <= float(row["held_out_accuracy"]) <= 1 for row in rows)
    said = capsys.readouterr().out
    assert "rtrl: solved 0 of 1" in said
    assert "lstm: solved 0 of 1" in said


@pytest.mark.slow
def test_rtrl_solves_what_the_truncated_gradient_does_not(tmp_path, monkeypatch):
    for name, value in {"STREAMS": 64, "EPOCH": 20, "HELD_OUT": 8}.items():
        monkeypatch.setattr(long_recall, name, value)
    out = tmp_path / "run"
    words = ["--length", "100", "--chunk", "5", "--models", "rtrl", "tbptt"]
    long_recall.main([*words, "--out", str(out)])
    with open(out / "metrics.csv") as file:
        last = {row["model"]: float(row["held_out_accuracy"]) for row in csv.DictReader(file)}
    assert last["rtrl"] >= long_recall.SOLVED
    assert last["tbptt"] < 0.4


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--models", "gru"], "--models"),
        (["--length", "0"], "--length: must be a whole number of at least 1, got 0"),
        (["--length", "75"], "--length: must be a multiple of --chunk = 50, got 75"),
        (["--chunk", "0"], "--chunk: must be a whole number of at least 1, got 0"),
        (["--units", "2.5"], "--units: must be a whole number of at least 1, got 2.5"),
        (["--forget-bias", "much"], "--forget-bias: must be a number, got much"),
        (["--lstm-bias", "large"], "--lstm-bias"),
        (["--rate", "0"], "--rate: must be a number above 0, got 0"),
        (["--batches", "-1"], "--batches: must be a whole number of at least 1, got -1"),
        (["--seeds", "nan"], "--seeds: must be a whole number of at least 1, got nan"),
        (["--out", "."], "--out must be a folder that does not exist yet"),
    ],
)
def test_bad_arguments(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        long_recall.main(words)
    assert error.value.code not in (0, None)
    assert named in capsys.readouterr().err + str(error.value.code)
    assert not list(tmp_path.iterdir())
