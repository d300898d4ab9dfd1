"""Settings of the R2AC learner."""

import dataclasses

import gin

from keras_rtrl._checks import flag, number, renamed


@gin.configurable(module="keras_rtrl")
@renamed(
    value_cost="value_pred_loss_coef",
    entropy_cost="entropy_regularization",
    gradient_clip="gradient_clipping",
    reward_clip="reward_clipping",
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class R2ACConfig:
    """Settings of the R2AC learner; the defaults are the paper's (Irie et al., ICLR 2024).

    Attributes:
      gamma: discount, in [0, 1]; multiplied with the environment's own.
      value_pred_loss_coef: weight of 1/2 sum (v - V)^2.
      entropy_regularization: weight of the policy's entropy.
      reward_clipping: rewards are clipped to [-reward_clipping, reward_clipping] in the learner; None for no clipping.
      gradient_clipping: largest global norm of the gradient; None for no clipping.
      train_core: False leaves the recurrent core as it was initialised.

    Raises:
      ValueError: a number out of its range, or a flag that is no bool.
    """

    gamma: float = 0.99
    value_pred_loss_coef: float = 0.5
    entropy_regularization: float = 0.01
    reward_clipping: float | None = 1.0
    gradient_clipping: float | None = 40.0
    train_core: bool = True

    @property
    def optimizer_steps(self) -> int:
        """Steps of the optimiser in one train() call."""
        return 1

    def __post_init__(self):
        number("gamma", self.gamma, low=0, high=1)
        for name in ("value_pred_loss_coef", "entropy_regularization"):
            number(name, getattr(self, name), low=0)
        for name in ("reward_clipping", "gradient_clipping"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), above=0)
        flag("train_core", self.train_core)
