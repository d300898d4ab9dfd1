"""A run's settings are data: what else its config.gin holds is refused before any of it runs."""

import json
import shutil
from pathlib import Path

import pytest

from keras_rtrl.train import cli, config, loop  # noqa: F401  loop: its settings are in every run
from keras_rtrl.train.checkpoints import Counters
from keras_rtrl.train.run_folder import RunFolder

EVIL = "open('{marker}', 'w').close()"
ATTACKS = {
    "import": "import evil\n",
    "from": "from evil import nothing\n",
    "include": "include 'evil.gin'\n",
    "include of a path": "include '{folder}/evil.gin'\n",
    "dynamic registration": (
        "from __gin__ import dynamic_registration\nimport os\ntrain.frames = @os.system()\n"
        "os.system.command = 'touch {marker}'\n"
    ),
    "five lines": (
        "from __gin__ import dynamic_registration\nimport subprocess\nMADE = @subprocess.getoutput()\n"
        "subprocess.getoutput.cmd = 'touch {marker}'\ntrain.frames = %MADE\n"
    ),
    "call": "train.frames = @ActorCriticNetwork()\n",
    "call in a list": "ActorCriticNetwork.head_units = [@train()]\n",
    "class called": "train.optimizer = @Adam()\n",
    "another function": "train.optimizer = @train\n",
    "function of gin": "train.optimizer = @gin.singleton\n",
    "function of another package": "train.optimizer = @ActorDistributionNetwork\n",
    "scoped class": "train.optimizer = @a/Adam\n",
    "class elsewhere": "train.seed = @Adam\n",
    "macro": "SEED = 3\ntrain.seed = %SEED\n",
    "constant": "train.seed = %gin.REQUIRED\n",
    "scope": "a/train.seed = 3\n",
    "another package": "ActorDistributionNetwork.name = 'x'\n",
    "block of another package": "ActorDistributionNetwork:\n  name = 'x'\n",
    "argument of the program": "train.run = 3\n",
    "unknown": "train.nothing = 3\n",
    "no gin": "train.seed = [\n",
    "module in a name": "environment.name = 'evil:Id-v0'\n",
    "module in an option": "environment.options = {{'env_id': 'evil:Id-v0'}}\n",
    "nothing but zeros": "\0\0\0\0",
}
COMMANDS = {
    "evaluate": ["evaluate", "run"],
    "export": ["export", "run", "policy"],
    "resume": ["train", "--resume", "run"],
}


@pytest.fixture
def run(tmaze_run, tmp_path, monkeypatch):
    """A copy of a run in the working directory, beside a module that leaves a file when it is imported."""
    shutil.copytree(tmaze_run, tmp_path / "run")
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(EVIL.format(marker=marker) + "\nnothing = 1\n")
    (tmp_path / "evil.gin").write_text("import evil\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as if the module were anywhere on the path
    return tmp_path / "run"


@pytest.mark.parametrize("attack", ATTACKS)
def test_anything_but_data_is_refused(run, tmp_path, attack, capsys):
    text = ATTACKS[attack].format(marker=tmp_path / "marker", folder=tmp_path)
    before = (run / "config.gin").read_text()
    (run / "config.gin").write_text(before + text)
    for words in COMMANDS.values():
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "config.gin" in error
        if "\0" not in text:
            assert any(f"line {before.count(chr(10)) + i}" in error for i in range(1, text.count("\n") + 2))
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "policy").exists()


def test_own_run_that_imports_a_module_goes_by_trust(run, tmp_path):
    (run / "config.gin").write_text("import evil\n" + (run / "config.gin").read_text())
    assert cli.main(["export", "run", "policy"]) == 2
    assert not (tmp_path / "marker").exists()
    assert cli.main(["export", "run", "policy", "--trust"]) == 0
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("words", COMMANDS.values(), ids=list(COMMANDS))
def test_own_run_goes_without_a_flag(run, words):
    assert cli.main(words) == 0


def test_cluster_that_a_run_names_is_not_joined_unasked(run, capsys):
    """What its processes send would be unpickled. Evaluating and exporting do not need it."""
    with open(run / "config.gin", "a") as file:
        file.write("actors.num_actors = 1\nactors.address = '192.0.2.1:6379'\n")
    assert cli.main(["train", "--resume", "run"]) == 2
    assert "--ray-address" in capsys.readouterr().err
    assert (
        cli.main(["train", "--resume", "run", "--gin", "actors.num_actors = 0", "--gin", "actors.address = None"]) == 0
    )
    assert cli.main(["evaluate", "run", "--episodes", "1"]) == 0
    assert cli.main(["export", "run", "policy"]) == 0


def test_settings_of_published_results_are_data(tmp_path):
    results = Path(__file__).parents[2] / "results"
    texts = [path.read_text() for path in results.rglob("config.gin")]
    for path in results.glob("*/settings.json"):
        for entry in json.loads(path.read_text()):
            if isinstance(entry["settings"], list):  # of the command line's runs; the examples' are dicts
                texts.append("\n".join(entry["settings"]) + "\n")
    assert len(texts) > 60
    for text in texts:
        (tmp_path / "config.gin").write_text(text)
        config.load_run(RunFolder(tmp_path))


def test_trust_is_about_a_run(capsys):
    assert cli.main(["train", "tmaze_r2ac", "--trust"]) == 2
    assert "--resume" in capsys.readouterr().err


def test_huge_settings(run, capsys):
    with open(run / "config.gin", "r+b") as file:
        file.truncate(2**40)
    assert cli.main(["export", "run", "policy"]) == 2
    assert "config.gin" in capsys.readouterr().err


def test_settings_by_macros_are_written_as_their_values(tmp_path):
    preset = tmp_path / "mine.gin"
    preset.write_text(
        "include 'tmaze_r2ac.gin'\nN = 4\nRATE = 0.5\nOPTIMIZER = @keras_rtrl.RMSprop\ntrain.optimizer = %OPTIMIZER\n"
        "environment.num_envs = %N\nenvironment.options = {'corridor': %N}\nActorCriticNetwork.units = %N\n"
        "RMSprop.rho = %RATE\nActorCriticNetwork.head_units = ()\n"
    )
    out = str(tmp_path / "run")
    assert cli.main(["train", str(preset), "--frames", "40", "--out", out]) == 0
    text = (tmp_path / "run" / "config.gin").read_text()
    for line in ("train.optimizer = @RMSprop", "environment.options = {'corridor': 4}", "RMSprop.rho = 0.5"):
        assert f"{line}\n" in text
    assert "%" not in text
    assert cli.main(["evaluate", out, "--episodes", "1"]) == 0
    config.load_run(RunFolder(out), ["train.frames = 80"])
    assert config.value("train.frames", None) == 80


@pytest.mark.parametrize(
    "text",
    [
        '{"save": 3}',
        '{"deserialize": 3}',
        '{"__class__": 3}',
        "[1]",
        "3",
        '{"frames": -1}',
        '{"frames": "many"}',
        '{"seconds": "a"}',
        '{"processor_seconds": -1}',
        '{"recent_returns": 3}',
        '{"recent_returns": ["a"]}',
        '{"unscored": [[1], [1, 2]]}',
        '{"running_returns": [NaN]}',
    ],
)
def test_counters_take_what_they_wrote_alone(text):
    counters = Counters()
    with pytest.raises(ValueError, match=r"must be|inhomogeneous|could not convert"):
        counters.deserialize(text)
    assert counters.serialize() == Counters().serialize()


def test_counters_of_an_earlier_version_have_no_processor_time():
    counters = Counters()
    counters.deserialize('{"seconds": 3.5}')
    assert (counters.seconds, counters.processor_seconds) == (3.5, None)
    counters.deserialize(counters.serialize())
    assert counters.processor_seconds is None
