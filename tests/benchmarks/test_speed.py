"""The speed benchmark: a quick run leaves whole results, bad arguments say so, and the peers compute what we do."""

import functools
import json
import os
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl.layers import ELSTM, RTU

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from benchmarks.common import Unavailable  # noqa: E402
from benchmarks.speed import __main__ as command  # noqa: E402
from benchmarks.speed import harness, report  # noqa: E402
from benchmarks.speed.contestants import QUICK_SIZES, SIZES, Contestant  # noqa: E402
from tests.benchmarks.peers import Peer  # noqa: E402


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--shape", "dmlab,tiny"], "--shape: must be a list of dmlab, atari, rtu_ppo, wide_rtu, stream, got"),
        (["--shape", ""], "--shape"),
        (["--rounds", "0"], "--rounds"),
        (["--publish", "--quick"], "leave out --shape, --quick"),
        (["--publish", "--shape", "dmlab"], "leave out --shape"),
        (["--publish", "--out", "x"], "leave out"),
        (["--out", "/dev/null/here"], "/dev/null/here"),
    ],
)
def test_bad_arguments(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        command.main(words)
    assert error.value.code == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_quick_run_without_peers(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(harness, "PEERS", tmp_path / "none")
    monkeypatch.setenv("PYTHONPATH", str(_without_peers(tmp_path)))
    out = tmp_path / "out"
    command.main(["--quick", "--rounds", "2", "--shape", "rtu_ppo", "--out", str(out)])
    results = json.loads((out / "speed.json").read_text())
    assert results["schema"] == command.SCHEMA
    assert results["threads"]["OMP_NUM_THREADS"] == "2"
    assert {"tensorflow", "numpy"} == set(results["versions"])
    assert {"torch", "jax"} <= set(results["left_out"])
    found = results["shapes"]["rtu_ppo"]
    assert found["size"] == QUICK_SIZES["rtu_ppo"]._asdict()
    expected = {"rtu_rtrl_twin", "rtu_rtrl_xla", "rtu_tbptt_twin", "keras_lstm", "keras_gru"}
    assert expected <= set(found["rows"])
    for row in (*found["rows"].values(), *found["limits"].values()):
        assert len(row["seconds"]) == 2
        assert 0 < row["lower"] <= row["median"] <= row["upper"]
    assert found["rows"]["keras_lstm"]["ratio"] == 1
    table = (out / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| keras LSTM, BPTT |" in table
    assert "torch: " in table.split("Left out:")[1]


def _without_peers(folder):
    """A folder of packages called torch and jax that cannot be imported."""
    for name in ("torch", "jax"):
        (folder / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    return folder


@pytest.mark.slow
def test_streaming_update_and_contexts_are_measured():
    with harness.Harness(rounds=1, quick=True) as measured:
        stream, update, context = measured.shape("stream"), measured.update(), measured.context()
    loops = {name: row for name, row in stream["rows"].items() if "keras" not in name}
    assert {"stream_auto", "stream_twin", "stream_xla"} <= set(loops)
    # The same data and start: rounding errors apart, the same losses.
    assert all(row["loss_gap"] < 1e-4 for row in loops.values())
    assert update["trace_bytes"] == 4 * 3 * 5 * 2 * 8
    assert update["growth"]["steps"] == 50
    assert {"update", "forward_update"} == set(update["rows"])
    lengths = [[point["steps"] for point in row["contexts"]] for row in context["rows"].values()]
    assert lengths == [[3, 6]] * 4
    results = {"quick": True, "left_out": {}, "shapes": {"stream": stream}, "update": update, "context": context}
    assert "| 6 |" in report.tables(results)


def test_peak_memory_is_that_of_the_contestant():
    elements = 16 * 2**20
    with harness.start("numpy") as process:
        process.ask("build", Contestant("copy_numpy", "copy", "numpy", "LIMITS", (elements,)))
        peak = process.ask("peak")
    assert 8 * elements <= peak < 9 * elements
    assert SIZES["atari"].trace_bytes == 4 * 32 * 257 * 512


def test_a_failing_contestant_says_why():
    with harness.start("numpy") as process, pytest.raises(RuntimeError, match=r"(?s)Traceback.*KeyError"):
        process.ask("build", Contestant("none", "none", "numpy", "LIMITS", ()))


def test_a_process_that_dies_says_its_last_words():
    dies = functools.partial(os.system, "echo last words; kill -9 $PPID")
    with pytest.raises(RuntimeError, match=r"(?s)ended with code -9.*last words"):
        common.Process(dies)


def test_contestants_begin_in_turn():
    assert list(common.in_turn(["a", "b", "c"], 2)) == ["a", "b", "c", "b", "c", "a"]
    assert list(common.in_turn([], 2)) == []


def test_figure(tmp_path):
    points = [{"steps": n, "lower": 1e-3, "median": 2e-3, "upper": 3e-3} for n in (50, 100)]
    rows = {"elstm_rtrl": {"label": "RTRL", "contexts": points}, "keras_lstm": {"label": "LSTM", "contexts": points}}
    results = {"context": {"size": SIZES["atari"]._asdict(), "rows": rows}}
    report.figure(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_goals_are_met_and_missed():
    def row(seconds):
        return {"median": seconds, "label": "x", "work": 1}

    rows = {"keras_lstm": row(1.0), "elstm_rtrl_native": row(0.2), "elstm_tbptt_native": row(0.19)}
    limits = {"copy_numpy": row(0.002), "copy_torch": row(0.004), "trace_torch": row(0.007)}
    shapes = {"dmlab": {"rows": rows, "limits": limits}}
    found = {text: (value, bound) for text, value, _, bound in report.goals({"shapes": shapes})}
    assert found["DMLab: eLSTM, RTRL / keras LSTM"] == (pytest.approx(0.2), 0.22)
    assert found["DMLab: (RTRL - truncated BPTT) / (trace GEMM + 1.5 copies of S)"] == (pytest.approx(1.0), 1.25)
    assert not any("torch" in text for text in found)


def test_published_page_keeps_its_text(tmp_path):
    page = tmp_path / "page.md"
    before, _, rest = command.PAGE.read_text().partition("<!-- figures")
    assert before.startswith("# Performance")
    page.write_text(command.PAGE.read_text())
    common.publish(page, command.COMMAND, "new")
    start = f"<!-- figures: written by {command.COMMAND} -->\n"
    assert page.read_text() == f"{before}{start}\nnew\n{common.END}{rest.partition(common.END)[2]}"
    with pytest.raises(ValueError, match="not enough"):
        common.publish(page, "another command", "new")


@pytest.mark.parametrize(("framework", "layer"), [("torch", ELSTM), ("jax", RTU)])
def test_step_by_step_forms_have_the_layers_gradients(framework, layer):
    batch, steps, inputs, units = 3, 5, 4, 6
    rng = np.random.default_rng(1)
    ours = layer(units, return_sequences=True, stateful=True)
    x = rng.normal(size=(2, batch, steps, inputs)).astype(np.float32)
    ours(tf.zeros((batch, 1, inputs)))
    ours.reset_state()
    e = rng.normal(size=(2, batch, steps, ours.output_size)).astype(np.float32)
    wanted = {}
    for x_chunk, e_chunk in zip(x, e, strict=True):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(ours(tf.constant(x_chunk)) * e_chunk)
        variables = ours.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(total, variables), strict=True):
            name = variable.name.split("/")[-1].split(":")[0]
            wanted[name] = wanted.get(name, 0) + gradient.numpy()
    arrays = {name: getattr(ours, name).numpy() for name in wanted}
    try:
        process = harness.start(framework, Peer)
    except Unavailable as error:
        pytest.skip(str(error))
    with process:
        found = process.ask("gradients", arrays | {"x": x, "cotangents": e})
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=2e-5, atol=2e-5 * np.abs(gradient).max(), err_msg=name)
