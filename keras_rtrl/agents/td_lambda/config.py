"""Settings of online prediction."""

import dataclasses

import gin

from keras_rtrl._checks import number, renamed, whole_number


@gin.configurable(module="keras_rtrl")
@renamed(trace_decay="lambda_value")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TDLambdaConfig:
    """Settings of online prediction by TD(lambda).

    Attributes:
      gamma: discount, in [0, 1]; multiplied with the environment's own.
      lambda_value: lambda, in [0, 1]; 0 is TD(0).
      window: steps that truncated BPTT goes back, of cores with gradient="tbptt".

    Raises:
      ValueError: a number out of its range.
    """

    gamma: float = 0.9
    lambda_value: float = 0.0
    window: int = 1

    def __post_init__(self):
        for name in ("gamma", "lambda_value"):
            number(name, getattr(self, name), low=0, high=1)
        whole_number("window", self.window)

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps a call of train()."""
        return 1
