"""Learning runs of minutes: what RTRL is for."""

import pytest

from keras_rtrl.train import building, config, loop
from keras_rtrl.train.run_folder import new_run


def right_choices(tmp_path, core, options, gradient, frames=2_000_000):
    """Share of right choices over the last 200 episodes in a T-maze of 40 steps, with rollouts of 10."""
    bindings = [
        f"train.frames = {frames}",
        "train.seed = 11",
        f"ActorCriticNetwork.core = {core!r}",
        f"ActorCriticNetwork.core_options = {options!r}",
        f"ActorCriticNetwork.gradient = {gradient!r}",
    ]
    config.load(config.find("tmaze_r2ac"), bindings)
    return (loop.train(new_run(str(tmp_path / gradient)), building.training()).mean_return + 1) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("core", "options"), [("rtu", {"r_min": 0.9}), ("elstm", {"forget_bias": 4.0})])
def test_rtrl_remembers_past_its_rollouts_and_tbptt_does_not(tmp_path, core, options):
    assert right_choices(tmp_path, core, options, "rtrl") > 0.95
    assert right_choices(tmp_path, core, options, "tbptt") < 0.65
