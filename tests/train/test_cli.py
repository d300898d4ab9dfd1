"""Bad input: one line on stderr, exit code 2, no traceback, and nothing written."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from keras_rtrl.train import cli, config, used


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


def test_quick_is_a_preset_of_its_own(error, tmp_path):
    assert "--quick trains tmaze_quick: leave out tmaze_r2ac" in error("train", "--quick", "tmaze_r2ac")
    assert "--quick trains tmaze_quick: leave out --resume" in error("train", "--quick", "--resume", "run")
    assert cli.main(["train", "--quick", "--frames", "800", "--out", "run"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["preset"], record["frames"]) == ("tmaze_quick", 800)
    assert not (tmp_path / "run" / "film.mp4").exists()


def test_unknown_game_names_a_close_one(error, tmp_path):
    assert "ALE/Pong-v5" in error("train", "atari_r2ac_cpu", "--game", "Pomg", "--out", "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("binding", "names"),
    [
        ("nothing.at_all = 1", "nothing"),
        ("train.no_such_setting = 1", "no_such_setting"),
        ("train.rollout_length =", "parse"),
        ("train.optimizer = @NoSuchOptimizer", "NoSuchOptimizer"),
        ("train.rollout_length = 0", "rollout"),
        ('environment.options = {"corridors": 3}', "corridors"),
        ('ActorCriticNetwork.core = "gru"', "gru"),
        ("R2ACConfig.gamma = 2.0", "gamma"),
        ("agent.name = 'a2c'", "r2ac, ppo, stream_ac, td_lambda"),
        ("agent.name = ['ppo']", "agent.name"),
        ("agent.name = 'stream_ac'", "num_streams must be 1"),
        ("train.rollout_length = 2.5", "train.rollout_length"),
        ("train.rollout_length = 'a'", "train.rollout_length"),
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
        ("import os", "sets nothing"),
        ("from os import path", "sets nothing"),
        ("train.rollout_length = %N", "'%N' has no value"),
        # what nothing uses
        ("seed = 3", "nothing uses 'seed' (did you mean 'train.seed'?)"),
        ("frames = 99999", "nothing uses 'frames' (did you mean 'train.frames'?)"),
        ("nonsense = 3", "nothing uses 'nonsense'"),
        ("a/train.seed = 3", "no setting 'a/train.seed' (did you mean 'train.seed'?)"),
        (
            "PPOConfig.gamma = 0.5",
            "nothing uses PPOConfig.gamma; agent.name is 'r2ac' (did you mean 'R2ACConfig.gamma'?)",
        ),
        ("RMSprop.rho = 0.5", "nothing uses RMSprop.rho; train.optimizer is @Adam"),
        ("Adam.learning_rate = 1.0", "(did you mean 'train.learning_rate'?)"),
        ("ActorCriticNetwork.action_spec = 3", "has no setting 'action_spec'"),
        ("R2ACConfig.entropy_cost = 0.1", "has another name now: R2ACConfig.entropy_regularization"),
        ("ActorPolicy.name = 'x'", "no setting 'ActorPolicy.name'"),
        ("sweep.tasks = {'a': []}", "sweep.tasks is for keras-rtrl sweep"),
        ("actors.queue = 1", "nothing uses actors.queue without --actors"),
        ("", "sets nothing"),
        ("# train.seed = 3", "sets nothing"),
        ("train.overlap = True", "train.overlap must be False for TMaze-v0, which runs inside TensorFlow's graph"),
        ("train.overlap = 1", "train.overlap must be True or False, got 1"),
        # what ended in a traceback
        ("train.rollout_length = [", "cannot parse"),
        ("train.rollout_length = '''", "cannot parse"),
        (f"train.rollout_length = {'[' * 5000}", "too many"),
        ("train.rollout_length = ²", "cannot parse"),
        ("train.seed = {[]: 1}", "cannot parse"),
        ("A = %B\nB = %A\ntrain.seed = %A", "'%A' needs its own value"),
        ("train.optimizer = @Adam()", "without brackets: @Adam"),
        ("train.optimizer = @a/Adam", "train.optimizer"),
        ("train.seed = @Adam", "train.seed"),
        ("train.seed = @train()", "train.seed"),
        ("from __gin__ import dynamic_registration\nimport nothere", "nothere"),
        (f"train.frames = 1{'0' * 400}", "train.frames must be"),
        (f"train.frames = {'1' * 5000}", "cannot parse"),
        ("train.frames = 1e30", "train.frames must be"),
        ("train.learning_rate = 1e999", "'train.learning_rate' must be finite"),
        (f"train.learning_rate = 1{'0' * 400}", "train.learning_rate must be"),
        ("Adam.epsilon = 'x'", "Adam.epsilon must be"),
        ("Adam.beta_1 = 1", "Adam.beta_1 must be below 1"),
        ("environment.workers = True", "environment.workers must be"),
        ("environment.options = {'corridor': 'x'}", "environment.options: corridor must be"),
        (f"environment.options = {{'corridor': 1{'0' * 20}}}", "environment"),
        (f"environment.name = '{'x' * 5000}'", "xxx"),
        (f"agent.name = '{'x' * 5000}'", "agent.name must be"),
        (f"train.{'x' * 5000} = 3", "train has no setting"),
        (f"{'x' * 5000} = 3", "nothing uses"),
        # more than the machine's memory
        ("environment.num_envs = 1_000_000_000", "environment.num_envs = 1000000000"),
        ("train.rollout_length = 1_000_000_000", "train.rollout_length = 1000000000"),
        ("ActorCriticNetwork.units = 1_000_000_000", "ActorCriticNetwork.units"),
        ("ActorCriticNetwork.head_units = (1_000_000_000,)", "ActorCriticNetwork.head_units"),
    ],
    ids=lambda text: text[:40],
)
def test_bad_setting_is_named(error, tmp_path, binding, names):
    text = error("train", "tmaze_r2ac", "--out", "new", "--gin", binding)
    assert names in text
    assert len(text) < 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("seed = 3", "line 2: nothing uses 'seed'"),
        ("PPOConfig.importance_ratio_clipping = 0.3", "line 2: nothing uses PPOConfig.importance_ratio_clipping"),
        ("RMSprop.rho = 0.3", "line 2: nothing uses RMSprop.rho"),
        ("train.rolout = 3", "line 2: train has no setting 'rolout' (did you mean 'train.rollout_length'?)"),
        ("trian.rollout = 3", "line 2: there is no setting 'trian.rollout' (did you mean 'train.rollout_length'?)"),
        ("train:\n  seed = 3\n  rolout = 3", "line 4: train has no setting 'rolout'"),
        ("include '{folder}/mine.gin'", "includes this file again"),
        ("include 'nowhere.gin'", "line 2: includes 'nowhere.gin', which is neither"),
        ("include 'no_package/nowhere.gin'", "line 2: includes 'no_package/nowhere.gin', which is neither"),
        ("include '{folder}/other.gin'", "includes this file again"),
        ("\0", "cannot parse"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_own_gin_file_with_what_cannot_be(error, tmp_path, command, lines, names):
    text = f'include "atari_r2ac.gin"\n{lines.format(folder=tmp_path)}\n'
    if "RMSprop" in lines:
        text += "train.optimizer = @Adam\n"
    (tmp_path / "mine.gin").write_text(text)
    (tmp_path / "other.gin").write_text(f"include '{tmp_path}/mine.gin'")
    assert names in error(command, "mine.gin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.gin", "other.gin"]


def test_settings_of_an_agent_that_a_sweep_trains(tmp_path):
    """Also what a preset sets for the agent that it had, and settings of actors for --actors."""
    path = tmp_path / "mine.gin"
    path.write_text(
        'include "tmaze_r2ac.gin"\nPPOConfig.importance_ratio_clipping = 0.3\nactors.queue = 1\nRMSprop.rho = 0.9\n'
        'sweep.tasks = {"T": []}\n'
        'sweep.conditions = {"a": [], "b": ["agent.name = \'ppo\'", "train.optimizer = @RMSprop"]}\n'
    )
    used.check("train", *config.load(str(path)))
    used.check(
        "train",
        *config.load(config.find("tmaze_r2ac"), ["agent.name = 'ppo'", "PPOConfig.importance_ratio_clipping = 0.3"]),
    )


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--frames", "400"], "train.frames must be at least 1000, what is done, got 400"),
        (["--gin", "train.seed = 1"], "train.seed = 0"),
        (["--gin", "environment.options = {'corridor': 4}"], "environment.options = {'corridor': 3}"),
        (["--gin", "train.rollout_length = 6"], "train.rollout_length = 5"),
        (["--gin", "train.learning_rate = 0.5"], "train.learning_rate = 0.01"),
        (["--gin", "train.optimizer = @RMSprop"], "train.optimizer = @Adam"),
        (["--gin", "agent.name = 'ppo'"], "agent.name = 'r2ac'"),
        (["--gin", "seed = 3"], "nothing uses 'seed'"),
        (["--gin", "PPOConfig.importance_ratio_clipping = 0.3"], "nothing uses PPOConfig.importance_ratio_clipping"),
        (["--gin", ""], "sets nothing"),
    ],
)
def test_resuming_with_other_settings(error, tmaze_run, tmp_path, words, names):
    shutil.copytree(tmaze_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert names in error("train", "--resume", "run", *words)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_resuming_with_what_may_change(tmaze_run, tmp_path):
    shutil.copytree(tmaze_run, tmp_path / "run")
    words = arguments(bindings=["train.log_updates = 7", "train.checkpoint_minutes = 2.0", "train.seed = 0"])
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--frames", "1100", *words]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["total_frames"] == 1100


@pytest.mark.parametrize(
    ("binding", "names"),
    [
        ("train.rollout_length = 'x'", "train.rollout_length must be"),
        ("train.optimizer = 3", "train.optimizer must be"),
        ("train.overlap = 'x'", "train.overlap must be"),
        ("train.seed = 3", "no use for train.seed"),
        ("environment.num_envs = 1_000_000_000", "environment.num_envs = 1000000000"),
        ("environment.num_envs = 'x'", "environment.num_envs must be"),
    ],
)
def test_bench_env_takes_what_train_takes(error, binding, names):
    assert names in error("bench", "env", "CartPole-v1", "--preset", "ppo_rtu_popgym", "--gin", binding)


def test_no_video_of_what_is_no_image(error, tmaze_run, tmp_path):
    assert "--video x.mp4" in error("evaluate", str(tmaze_run), "--video", "x.mp4")
    assert not list(tmp_path.iterdir())


NO_PORT = '{"cluster": {"worker": ["localhost:99999"]}, "task": {"type": "worker", "index": 0}}'


@pytest.mark.parametrize(
    "text",
    ["5", "[1]", '"x"', "{", "{}", '{"cluster": 3}', '{"cluster": {"worker": 5}, "task": 3}', NO_PORT],
)
def test_tf_config_of_another_form(error, monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    words = ["--gin", "train.strategy = 'multi_worker_mirrored'"]
    for preset in ("atari_r2ac_cpu", "tmaze_r2ac"):
        assert "TF_CONFIG" in error("train", preset, "--out", "new", *words)


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


@pytest.mark.parametrize("target", ["run", "run/checkpoints"])
def test_export_over_what_the_run_needs(error, tmaze_run, tmp_path, target):
    shutil.copytree(tmaze_run, tmp_path / "run")
    assert "another folder" in error("export", "run", target)


def test_resuming_with_another_network(error, tmaze_run, tmp_path):
    shutil.copytree(tmaze_run, tmp_path / "run")
    before = (tmp_path / "run" / "config.gin").read_text()
    assert "ActorCriticNetwork.units" in error("train", "--resume", "run", "--gin", "ActorCriticNetwork.units = 9")
    assert (tmp_path / "run" / "config.gin").read_text() == before


@pytest.mark.parametrize(("game", "names"), [("Nope", "ALE/Nope-v5"), ("TMaze-v7", "TMaze-v7")])
def test_game_is_named_where_the_preset_has_options_of_another(error, tmp_path, game, names):
    text = error("train", "tmaze_r2ac", "--game", game)
    assert names in text
    assert "corridor" not in text
    assert not list(tmp_path.iterdir())


def test_gin_file_with_an_unknown_name(error, tmp_path):
    (tmp_path / "mine.gin").write_text("trian.rollout_length = 3\n")
    assert "trian" in error("train", "mine.gin", "--out", "new")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["sweep", "td_trace_conditioning", "--report-only", "--seeds", "2"], "--seeds"),
        (["sweep", "td_trace_conditioning", "--report-only", "--jobs", "2"], "--jobs"),
        (["sweep", "td_trace_conditioning", "--report-only", "--frames", "9"], "--frames"),
        (["train", "tmaze_r2ac", "--frames", "9", "--gin", "train.frames = 12"], "train.frames"),
        (["bench"], "python -m benchmarks.speed"),
        (["bench", "--quick", "--rounds", "3"], "python -m benchmarks.speed"),
        (["bench", "--quick", "env", "CartPole-v1"], "python -m benchmarks.speed"),
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


def test_folder_that_holds_a_run_is_left_alone(error, tmaze_run, tmp_path):
    run = str(shutil.copytree(tmaze_run, tmp_path / "run"))
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
