"""Settings of the PPO learner."""

import dataclasses

import gin

from keras_rtrl._checks import flag, number, whole_number


@gin.configurable(module="keras_rtrl")
@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Settings of the PPO learner; the defaults are the paper's (Elelimy et al., NeurIPS 2024), but for `chunk`.

    Attributes:
      gamma: discount, in [0, 1]; multiplied with the environment's own.
      gae_lambda: lambda of the generalised advantage estimate, in [0, 1].
      clip: the probability ratio is clipped to [1 - clip, 1 + clip].
      value_clip: values are clipped to within this of the rollout's; None for no clipping.
      value_cost: weight of 1/2 (V - return)^2.
      entropy_cost: weight of the policy's entropy.
      gradient_clip: largest global norm of a minibatch's gradient; None for no clipping.
      epochs: passes over a rollout.
      minibatches: optimiser steps an epoch, each on as many chunks.
      chunk: steps a rollout is cut into, each from a stored carry; 1 is the paper's per-step scheme. Truncated BPTT
        (gradient="tbptt") reaches back so many steps.
      stale_gradient: use the carry stored while the rollout was made in all epochs; False computes it anew, from the
        rollout's start and under the current parameters, before each epoch.
      stale_target: likewise for advantages and returns.
      scale_reward: divide rewards by the running standard deviation of the discounted return.

    Raises:
      ValueError: a number out of its range, or a flag that is no bool.
    """

    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    value_cost: float = 0.5
    entropy_cost: float = 0.0
    gradient_clip: float | None = 0.5
    epochs: int = 4
    minibatches: int = 32
    chunk: int = 16
    stale_gradient: bool = True
    stale_target: bool = True
    scale_reward: bool = True

    def __post_init__(self):
        for name in ("gamma", "gae_lambda"):
            number(name, getattr(self, name), low=0, high=1)
        for name in ("value_cost", "entropy_cost"):
            number(name, getattr(self, name), low=0)
        number("clip", self.clip, above=0)
        for name in ("value_clip", "gradient_clip"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), above=0)
        for name in ("epochs", "minibatches", "chunk"):
            whole_number(name, getattr(self, name))
        for name in ("stale_gradient", "stale_target", "scale_reward"):
            flag(name, getattr(self, name))

    @property
    def optimizer_steps(self):
        """Optimiser steps a rollout."""
        return self.epochs * self.minibatches
