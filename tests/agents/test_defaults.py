"""Settings of the papers, which presets do not repeat, and the ends of their ranges."""

import dataclasses
import inspect

import gin
import pytest

from keras_rtrl.agents import ObGD, PPOConfig, R2ACConfig, StreamACConfig, TDLambdaConfig

DEFAULTS = {
    R2ACConfig: {
        "gamma": 0.99,
        "value_pred_loss_coef": 0.5,
        "entropy_regularization": 0.01,
        "reward_clipping": 1.0,
        "gradient_clipping": 40.0,
        "train_core": True,
    },
    PPOConfig: {
        "gamma": 0.99,
        "lambda_value": 0.95,
        "importance_ratio_clipping": 0.2,
        "value_clipping": 0.2,
        "value_pred_loss_coef": 0.5,
        "entropy_regularization": 0.0,
        "gradient_clipping": 0.5,
        "num_epochs": 4,
        "num_minibatches": 32,
        "chunk": 16,
        "stale_gradient": True,
        "stale_target": True,
        "reward_clipping": None,
        "normalize_rewards": True,
    },
    StreamACConfig: {
        "gamma": 0.99,
        "lambda_value": 0.8,
        "entropy_regularization": 0.01,
        "value_pred_loss_coef": 1.0,
        "normalize_rewards": True,
        "window": 1,
    },
    TDLambdaConfig: {"gamma": 0.9, "lambda_value": 0.0, "window": 1},
}
ALLOWED = {
    "gamma": [0.0, 0.5, 1.0],
    "lambda_value": [0.0, 1.0],
    "value_pred_loss_coef": [0.0, 0.5],
    "entropy_regularization": [0.0, 0.5],
    "importance_ratio_clipping": [0.5],
    "value_clipping": [None, 0.5],
    "reward_clipping": [None, 0.5],
    "gradient_clipping": [None, 0.5],
    "num_epochs": [1],
    "num_minibatches": [1],
    "chunk": [1],
    "window": [1],
}


@pytest.mark.parametrize("config", DEFAULTS)
def test_defaults(config):
    assert dataclasses.asdict(config()) == DEFAULTS[config]


RENAMED = {
    PPOConfig: {
        "gae_lambda": "lambda_value", "clip": "importance_ratio_clipping", "value_clip": "value_clipping",
        "value_cost": "value_pred_loss_coef", "entropy_cost": "entropy_regularization",
        "gradient_clip": "gradient_clipping", "epochs": "num_epochs",
    },
    R2ACConfig: {
        "value_cost": "value_pred_loss_coef", "entropy_cost": "entropy_regularization",
        "gradient_clip": "gradient_clipping",
    },
    StreamACConfig: {"value_cost": "value_pred_loss_coef", "entropy_cost": "entropy_regularization"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "old", "new"), [(c, *pair) for c, names in RENAMED.items() for pair in names.items()]
)
def test_old_names_say_the_new_ones(config, old, new):
    with pytest.raises(TypeError, match=f"{config.__name__} has no argument {old} any more: it is {new}"):
        config(**{old: 1})
    assert new in DEFAULTS[config]


@pytest.mark.parametrize("config", DEFAULTS)
def test_the_ends_of_a_range_belong_to_it(config):
    for name in DEFAULTS[config]:
        for value in ALLOWED.get(name, ()):
            assert getattr(config(**{name: value}), name) == value


@pytest.mark.parametrize("config", DEFAULTS)
def test_gin_knows_them_and_nothing_changes_one_that_was_checked(config):
    made = gin.get_configurable(f"keras_rtrl.{config.__name__}")()
    assert made == config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.gamma = 2.0


def test_obgd():
    parameters = inspect.signature(ObGD).parameters
    assert {name: parameters[name].default for name in ("learning_rate", "critic_kappa", "actor_kappa")} == {
        "learning_rate": 1.0,
        "critic_kappa": 2.0,
        "actor_kappa": 3.0,
    }
    optimizer = ObGD(critic_kappa=0.5, actor_kappa=0.25)  # below 1 is allowed
    assert (optimizer.critic_kappa, optimizer.actor_kappa) == (0.5, 0.25)
    assert optimizer.get_config().keys().isdisjoint({"momentum", "nesterov", "jit_compile"})  # takes none of them
