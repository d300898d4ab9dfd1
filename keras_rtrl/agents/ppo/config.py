"""Settings of the PPO learner."""

import dataclasses

import gin

from keras_rtrl._checks import flag, number, renamed, whole_number


@gin.configurable(module="keras_rtrl")
@renamed(
    gae_lambda="lambda_value",
    clip="importance_ratio_clipping",
    value_clip="value_clipping",
    value_cost="value_pred_loss_coef",
    entropy_cost="entropy_regularization",
    gradient_clip="gradient_clipping",
    epochs="num_epochs",
    minibatches="num_minibatches",
    scale_reward="normalize_rewards",
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of the PPO learner; the defaults are the paper's (Elelimy et al., NeurIPS 2024), but for `chunk`.

    Attributes:
      gamma: discount, in [0, 1]; multiplied with the environment's own.
      lambda_value: lambda of the generalised advantage estimate, in [0, 1].
      importance_ratio_clipping: the probability ratio is clipped to 1 plus or minus this.
      value_clipping: values are clipped to within this of the rollout's; None for no clipping.
      value_pred_loss_coef: weight of 1/2 (V - return)^2.
      entropy_regularization: weight of the policy's entropy.
      gradient_clipping: largest global norm of a minibatch's gradient; None for no clipping.
      num_epochs: passes over a rollout.
      num_minibatches: optimiser steps an epoch, each on as many chunks.
      chunk: steps a rollout is cut into, each from a stored carry; 1 is the paper's per-step scheme. Truncated BPTT
        (gradient="tbptt") reaches back so many steps.
      stale_gradient: use the carry stored while the rollout was made in all epochs; False computes it again, from the
        rollout's start and under the current parameters, before each epoch.
      stale_target: the same for advantages and returns.
      reward_clipping: rewards are clipped to [-reward_clipping, reward_clipping] first; None for no clipping.
      normalize_rewards: divide rewards by the running standard deviation of the discounted return.

    Raises:
      ValueError: a number out of its range, or a flag that is no bool.
    """

    gamma: float = 0.99
    lambda_value: float = 0.95
    importance_ratio_clipping: float = 0.2
    value_clipping: float | None = 0.2
    value_pred_loss_coef: float = 0.5
    entropy_regularization: float = 0.0
    gradient_clipping: float | None = 0.5
    num_epochs: int = 4
    num_minibatches: int = 32
    chunk: int = 16
    stale_gradient: bool = True
    stale_target: bool = True
    reward_clipping: float | None = None
    normalize_rewards: bool = True

    def __post_init__(self):
        for name in ("gamma", "lambda_value"):
            number(name, getattr(self, name), low=0, high=1)
        for name in ("value_pred_loss_coef", "entropy_regularization"):
            number(name, getattr(self, name), low=0)
        number("importance_ratio_clipping", self.importance_ratio_clipping, above=0)
        for name in ("value_clipping", "gradient_clipping", "reward_clipping"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), above=0)
        for name in ("num_epochs", "num_minibatches", "chunk"):
            whole_number(name, getattr(self, name))
        for name in ("stale_gradient", "stale_target", "normalize_rewards"):
            flag(name, getattr(self, name))

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps a rollout."""
        return self.num_epochs * self.num_minibatches
