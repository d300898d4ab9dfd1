"""Bad input: one line on stderr, exit code 2, no traceback, and nothing written."""

import os
import subprocess
import sys

import pytest

from keras_rtrl.train import cli

TINY = ["train.log_updates = 5", "ActorCriticNetwork.units = 4", 'environment.options = {"corridor": 3}']


def arguments(*words, bindings=()):
    return [*words, *(word for binding in bindings for word in ("--gin", binding))]


@pytest.fixture
def error(capsys, tmp_path, monkeypatch):
    """Runs the command, expects exit code 2 and one line on stderr, and returns that line."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert cli.main(list(words)) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        assert text.startswith("keras-rtrl: error: ")
        assert text.count("\n") == 1
        return text

    return run


def test_unknown_preset_names_the_known_ones(error):
    assert "tmaze_r2ac" in error("train", "no_such_preset")


def test_neither_preset_nor_run(error):
    assert "preset" in error("train")


def test_unknown_game_names_a_close_one(error, tmp_path):
    assert "ALE/Pong-v5" in error("train", "atari_r2ac_cpu", "--game", "Pomg", "--out", "new")
    assert not (tmp_path / "new" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("binding", "names"),
    [
        ("nothing.at_all = 1", "nothing"),
        ("train.no_such_setting = 1", "no_such_setting"),
        ("train.rollout =", "parse"),
        ("train.optimizer = @NoSuchOptimizer", "NoSuchOptimizer"),
        ("train.rollout = 0", "rollout"),
        ('environment.options = {"corridors": 3}', "corridors"),
        ('ActorCriticNetwork.core = "gru"', "gru"),
        ("R2ACConfig.gamma = 2.0", "gamma"),
    ],
)
def test_bad_setting_is_named(error, binding, names):
    assert names in error("train", "tmaze_r2ac", "--out", "new", "--gin", binding)


def test_gin_file_with_an_unknown_name(error, tmp_path):
    (tmp_path / "mine.gin").write_text("trian.rollout = 3\n")
    assert "trian" in error("train", "mine.gin", "--out", "new")


@pytest.mark.parametrize("words", [["evaluate"], ["export"], ["train", "--resume"]])
@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_folder_that_is_no_run(error, tmp_path, words, folder):
    (tmp_path / "empty").mkdir()
    target = ["target"] if words == ["export"] else []
    assert folder in error(*words, folder, *target)
    assert not (tmp_path / "target").exists()


def test_folder_that_cannot_be_written(error, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in error("train", "tmaze_r2ac", "--out", str(tmp_path / "file" / "run"))
    assert "cannot write" in error("train", "tmaze_r2ac", "--out", "/proc/run")


def test_folder_that_holds_a_run_is_left_alone(error, tmp_path):
    run = str(tmp_path / "run")
    assert cli.main(arguments("train", "tmaze_r2ac", "--frames", "1000", "--out", run, bindings=TINY)) == 0
    before = (tmp_path / "run" / "metrics.csv").read_text()
    assert cli.main(["train", "tmaze_r2ac", "--out", run]) == 2
    assert (tmp_path / "run" / "metrics.csv").read_text() == before
    assert cli.main(["train", "tmaze_r2ac", "--resume", run]) == 2


@pytest.mark.parametrize(
    "words", [["--frames", "0"], ["--frames", "many"], ["--seed", "-1"], ["--minutes", "0"], ["--x"]]
)
def test_bad_arguments(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "tmaze_r2ac", *words])
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def command(*words, **options):
    """The installed command in a fresh process, without this suite's environment variables."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL")}
    script = os.path.join(os.path.dirname(sys.executable), "keras-rtrl")
    return subprocess.run([script, *words], capture_output=True, text=True, env=environment, check=False, **options)


def test_fresh_process_reports_bad_input_and_exits_with_2(tmp_path):
    done = command("train", "tmaze_r2ac", "--gin", "train.rolout = 3", cwd=tmp_path)
    assert done.returncode == 2
    assert "rolout" in done.stderr
    assert "Traceback" not in done.stderr


def test_info_prints_versions_and_devices():
    done = command("info")
    assert done.returncode == 0
    assert "tensorflow 2.21" in done.stdout
    assert "device CPU:0" in done.stdout
