"""The benchmark of actors: what it measures, the simulation's limits, the model's numbers, and the cluster file."""

import json
import pathlib
import sys

import pytest

pytest.importorskip("ray", reason="actors need Ray")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import END  # noqa: E402
from benchmarks.scale import __main__ as command  # noqa: E402
from benchmarks.scale import model, trainers  # noqa: E402
from benchmarks.scale.simulation import Costs, simulate  # noqa: E402

# An actor's rollout of 20 steps takes 0.2 s, an update 0.05 s.
COSTS = Costs(steps=20, wait=0.0, act=0.01, rollout=0.0, learn=0.05, threads=1)


def row(rate, **extra):
    return {"rate": rate, "rates": [rate], "own": 1.0, "busy": 1.5, "extra": {"lag": 1.0, "queue": 0.5} | extra}


# Measurements as a machine with easy numbers would have given them.
SIZE = {"streams": 16, "steps": 20, "frames": 10**5, "else": 0, "weights": 10**6, "traces": 10**5, "computed": False}
FOUND = {
    "when": "now",
    "load_before": [0, 0, 0],
    "load_after": [0, 0, 0],
    "cores": 2,
    "rounds": 1,
    "sizes": {"atari_r2ac_cpu": SIZE, "waiting": SIZE | {"frames": 10, "weights": 10, "streams": 1}},
    "learner": {
        "atari_r2ac_cpu": {"streams": [8, 16], "seconds": [0.06, 0.11], "cores": [1.5, 1.6]},
        "waiting": {"streams": [1, 2], "seconds": [0.01, 0.01], "cores": [1.0, 1.0]},
    },
    "store": {
        "sizes": [10**4, 10**6], "put": [1e-4, 1e-3], "get": [1e-4, 1e-4], "make": [1e-3, 2e-3], "call": 1e-4,
        "pending": [100, 1000], "wait": [1e-4, 1e-3],
    },
    "joining": {"rollouts": [1, 16], "seconds": [1e-3, 2e-3], "bytes": 16 * 10**5},
    "waiting": {"1": {"alone": row(49.5), "1": row(49.0), "2": row(97.0)}},
    "fleets": {"1 actor": (1, 16), "2 actors of 8": (2, 8)},
    "atari": {
        "1 actor": row(1500.0), "2 actors of 8": row(1600.0), "single machine": row(1000.0),
        "learner alone": row(2900.0),
        "1 actor of 16, nobody learns": row(1600.0), "1 actor of 8, nobody learns": row(1500.0),
    },
}  # fmt: skip


@pytest.mark.parametrize(("actors", "rate"), [(1, 5.0), (3, 15.0), (4, 20.0), (5, 20.0), (500, 20.0)])
def test_the_slower_side_sets_the_rate(actors, rate):
    """One actor goes at its own rate, any number of them at the learner's."""
    assert simulate(COSTS, actors, count=1)[0] == pytest.approx(rate, rel=0.01)


def test_without_a_queue_actor_and_learner_take_turns():
    assert simulate(COSTS, 1, count=1, queue=1)[0] == pytest.approx(1 / (0.2 + 0.05), rel=1e-3)


def test_shared_cores_bound_the_work():
    updates, busy = simulate(COSTS, 4, count=1, cores=1)
    assert updates == pytest.approx(1 / (0.2 + 0.05), rel=0.01)
    assert busy == pytest.approx(1.0)


def test_waiting_takes_no_core():
    costs = COSTS._replace(wait=0.01, act=1e-4, learn=1e-4)
    assert simulate(costs, 8, count=8, cores=1)[0] == pytest.approx(1 / (20 * 0.0101), rel=0.02)


@pytest.mark.parametrize("way", ["bytes_in", "bytes_out"])
def test_the_network_card_bounds_the_rate(way):
    costs = COSTS._replace(**{way: 1000.0})
    assert simulate(costs, 50, count=2, bandwidth=16_000.0, warm_up=100)[0] == pytest.approx(8.0, rel=0.05)


def test_the_model_says_what_breaks():
    load = model.load(FOUND, "atari_r2ac_cpu", rate=1600.0, streams=16, actors=100, learners=1)
    updates = 100 * 1600 / 320
    assert load.learning == pytest.approx(updates * 0.11)
    assert load.rollouts == pytest.approx(updates * 16 * 1e5 / model.NETWORK)
    assert load.weights == pytest.approx(updates * 1e6 / model.NETWORK)
    assert load.traces == pytest.approx(100 * 16 * 1e5 / model.MEMORY)
    assert max(load) == load.learning
    shared = model.load(FOUND, "atari_r2ac_cpu", rate=1600.0, streams=16, actors=100, learners=10)
    assert shared.learning == pytest.approx(load.learning / 10)
    assert shared.process < load.process / 10  # fewer calls to wait for at each update too


def test_training_is_timed():
    trainer = trainers.Trainer("waiting", 0, None, 2)
    rate, own, busy, _ = trainer.run(1, 1)
    trainer.close()
    assert 0 < rate < 50  # 20 ms a step of each stream, one after the other
    assert 0 < own
    assert 0 < busy


def test_sizes_of_shapes_alone():
    size = trainers.sizes(["dmlab_r2ac"])["dmlab_r2ac"]
    assert size["computed"]
    assert size["frames"] == 101 * 72 * 96 * 3
    assert size["traces"] == 4 * (2 * 257 * 512 + 4 * 512)


@pytest.mark.parametrize(("actors", "streams", "lag"), [(1, 16, 1.0), (2, 8, 1.0), (2, 16, 3.0), (1000, 1, 124.0)])
def test_lag_is_what_is_under_way(actors, streams, lag):
    assert model.lag(SIZE, streams, actors) == lag


def test_page_keeps_its_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results" / "scale.json")
    monkeypatch.setattr(command, "FIGURE", tmp_path / "figure.png")
    page = tmp_path / "scale.md"
    page.write_text(command.PAGE.read_text())
    monkeypatch.setattr(command, "PAGE", page)
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    command.main(["--report", str(tmp_path / "found.json"), "--publish"])
    before, _, _ = (ROOT / "docs" / "scale.md").read_text().partition("<!-- figures")
    kept, _, new = page.read_text().partition("<!-- figures")
    assert kept == before
    assert new.count(END) == 1
    assert "| 2 | 97.0 | 99.0 % |" in new
    assert "| 10,000 | 64 |" in capsys.readouterr().out
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        command.main(["--quick", "--publish"])


@pytest.mark.slow
def test_quick_run(tmp_path, capsys):
    command.main(["--quick", "--out", str(tmp_path / "scale.json")])
    assert "### A learner's update" in capsys.readouterr().out
    assert (tmp_path / "scale.json").exists()


def test_ray_takes_the_cluster_file():
    yaml = pytest.importorskip("yaml")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "examples" / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config(config | {"machines": []}))
