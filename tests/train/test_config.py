"""The presets that come with the package, and gin files that build on them."""

import pytest

from keras_rtrl.train import config, loop  # noqa: F401  loop: its settings are in the presets


@pytest.mark.parametrize("preset", config.presets())
def test_every_run_of_a_presets_sweep_is_a_configuration(preset):
    path = config.find(preset)
    config.load(path)
    assert config.value("train.frames", None) > 0
    if config.value("sweep.tasks", None) is None:
        return
    tasks, conditions = config.sweep()
    for task in tasks.values():
        for label, condition in conditions.items():
            config.load(path, [*task, *condition])
            if config.value("ActorCriticNetwork.core", None) == "stack":
                options = config.value("ActorCriticNetwork.core_options", None)
                assert label == {1: "feed-forward", 4: "last 4 frames"}[options["frames"]]


def test_all_of_atari_in_a_file_that_includes_a_preset(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text('include "atari_r2ac.gin"\nsweep.tasks = %ATARI_57\n')
    config.load(str(path))
    tasks, conditions = config.sweep()
    assert len(tasks) == 57
    assert tasks["ALE/Pong-v5"] == ["environment.name = 'ALE/Pong-v5'"]
    assert list(conditions) == ["RTRL", "TBPTT", "feed-forward"]
    assert config.text("train.rollout_length", "") == "50"


def test_included_presets_are_the_packages_own(tmp_path, monkeypatch, caplog):
    (tmp_path / "ppo_rtu_mujoco_p.gin").write_text("train.rollout_length = 7\n")
    monkeypatch.chdir(tmp_path)
    config.load(config.find("ppo_rtu_popgym"))
    assert config.value("train.rollout_length", None) == 128
    assert caplog.text == ""


def test_settings_by_macros(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text(
        'GAME = "ALE/Pong-v5"\nLIMIT = 9\nenvironment.name = %GAME\nenvironment.options = {"max_frames": %LIMIT}\n'
    )
    config.load(str(path))
    assert config.value("environment.name", None) == "ALE/Pong-v5"
    assert config.text("environment.options", "") == "{'max_frames': 9}"
    assert config.value("no_such.setting", 3) == 3


def test_frozen_vision_is_the_dmlab_preset_but_for_its_vision():
    config.load(config.find("dmlab_r2ac"))
    other = {name: config.text(name, "") for name in ("environment.name", "train.rollout_length", "RMSprop.rho")}
    assert config.value("ActorCriticNetwork.train_encoder", True) is True
    config.load(config.find("dmlab_r2ac_frozen_vision"))
    assert {name: config.text(name, "") for name in other} == other
    assert config.value("ActorCriticNetwork.train_encoder", True) is False
    assert config.value("train.encoder_from", None) == "runs/vision-watermaze"
