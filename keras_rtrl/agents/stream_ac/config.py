"""Settings of the streaming actor-critic."""

import dataclasses

import gin

from keras_rtrl._checks import flag, number, renamed, whole_number


@gin.configurable(module="keras_rtrl")
@renamed(
    value_cost="value_pred_loss_coef",
    entropy_cost="entropy_regularization",
    trace_decay="lambda_value",
    scale_reward="normalize_rewards",
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamACConfig:
    """Settings of the streaming actor-critic; the defaults are those of Elsayed et al. (2024).

    Attributes:
      gamma: discount, in [0, 1]; multiplied with the environment's own.
      lambda_value: lambda of actor and critic, in [0, 1].
      entropy_regularization: weight of the policy's entropy.
      value_pred_loss_coef: weight of the critic's step; the actor's is 1.
      normalize_rewards: divide rewards by the running standard deviation of the discounted return.
      window: steps that truncated BPTT goes back, of cores with gradient="tbptt".

    Raises:
      ValueError: a number out of its range, or a flag that is no bool.
    """

    gamma: float = 0.99
    lambda_value: float = 0.8
    entropy_regularization: float = 0.01
    value_pred_loss_coef: float = 1.0
    normalize_rewards: bool = True
    window: int = 1

    def __post_init__(self):
        for name in ("gamma", "lambda_value"):
            number(name, getattr(self, name), low=0, high=1)
        for name in ("entropy_regularization", "value_pred_loss_coef"):
            number(name, getattr(self, name), low=0)
        whole_number("window", self.window)
        flag("normalize_rewards", self.normalize_rewards)

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps a call of train()."""
        return 1
