"""Bad input: one line on stderr, exit code 2, no traceback, and nothing written."""

import os
import shutil
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
    assert not (tmp_path / "new").exists()


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
        ("agent.name = 'a2c'", "r2ac, ppo, stream_ac, td_lambda"),
        ("agent.name = ['ppo']", "agent.name"),
        ("agent.name = 'stream_ac'", "num_streams must be 1"),
        ("train.rollout = 2.5", "train.rollout"),
        ("train.rollout = 'a'", "train.rollout"),
        ("train.frames = None", "train.frames"),
        ("train.frames = 'a'", "train.frames"),
        ("train.seed = -1", "train.seed"),
        ("train.seed = 'a'", "train.seed"),
        ("train.seed = 4294967296", "train.seed"),
        ("train.learning_rate = 'a'", "train.learning_rate"),
        ("train.learning_rate = -1", "train.learning_rate"),
        ("train.optimizer = 3", "train.optimizer"),
        ("train.optimizer = 'adam'", "train.optimizer"),
        ("train.log_updates = 2.5", "train.log_updates"),
        ("train.return_window = 1.5", "train.return_window"),
        ("environment.options = 5", "environment.options"),
        ("environment.options = {'seed': 3}", "seed"),
        ("ActorCriticNetwork.units = 'a'", "units"),
        ("import nothere", "nothere"),
        ("train.rollout = %N", "N"),
    ],
)
def test_bad_setting_is_named(error, tmp_path, binding, names):
    assert names in error("train", "tmaze_r2ac", "--out", "new", "--gin", binding)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [[], ["--out", "new"]])
@pytest.mark.parametrize(
    ("lines", "names"),
    [("train.frames = 10", "name"), ('environment.name = "TMaze-v0"\ntrain.optimizer = 3', "frames")],
)
def test_own_gin_file_that_lacks_a_setting(error, tmp_path, lines, names, out):
    (tmp_path / "mine.gin").write_text(lines + ("" if "optimizer" in lines else "\ntrain.optimizer = @Adam"))
    assert names in error("train", "mine.gin", *out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.gin"]


@pytest.mark.parametrize("words", [["evaluate"], ["export"], ["train", "--resume"]])
@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_broken_checkpoint(error, tmaze_run, tmp_path, words, part, damage):
    shutil.copytree(tmaze_run, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").glob(f"*.{part}"):
        file.unlink() if damage == "missing" else file.write_bytes(b"")
    assert "broken" in error(*words, "run", *(["target"] if words == ["export"] else []))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_resuming_with_another_network(error, tmaze_run, tmp_path):
    shutil.copytree(tmaze_run, tmp_path / "run")
    before = (tmp_path / "run" / "config.gin").read_text()
    assert "another configuration" in error("train", "--resume", "run", "--gin", "ActorCriticNetwork.units = 9")
    assert (tmp_path / "run" / "config.gin").read_text() == before


@pytest.mark.parametrize(("game", "names"), [("Nope", "ALE/Nope-v5"), ("TMaze-v7", "TMaze-v7")])
def test_game_is_named_where_the_preset_has_options_of_another(error, tmp_path, game, names):
    text = error("train", "tmaze_r2ac", "--game", game)
    assert names in text
    assert "corridor" not in text
    assert not list(tmp_path.iterdir())


def test_gin_file_with_an_unknown_name(error, tmp_path):
    (tmp_path / "mine.gin").write_text("trian.rollout = 3\n")
    assert "trian" in error("train", "mine.gin", "--out", "new")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["sweep", "td_trace_conditioning", "--report-only", "--seeds", "2"], "--seeds"),
        (["sweep", "td_trace_conditioning", "--report-only", "--jobs", "2"], "--jobs"),
        (["sweep", "td_trace_conditioning", "--report-only", "--frames", "9"], "--frames"),
        (["bench", "--quick", "env", "CartPole-v1"], "--quick"),
        (["bench", "--rounds", "3", "env", "CartPole-v1"], "--rounds"),
    ],
)
def test_flag_without_effect(error, words, names):
    assert names in error(*words)


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
    "words",
    [
        ["--frames", "0"],
        ["--frames", "many"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
        ["--minutes", "0"],
        ["--game", ""],
        ["--out", ""],
        ["--resume", ""],
        ["--x"],
        ["--frames", "9", "--frames", "12"],
        ["--seed=--"],
        ["--game", "x" * 5000, "--frames", "1" * 5000],
        ["--frames", "\x1b[31m\udcff"],
    ],
)
def test_bad_arguments(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "tmaze_r2ac", *words])
    assert exit_.value.code == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert "error: " in text
    assert "_" not in text.splitlines()[-1]  # no name of a function
    assert len(text.splitlines()[-1]) < 1500
    assert text.splitlines()[-1].isprintable()


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
