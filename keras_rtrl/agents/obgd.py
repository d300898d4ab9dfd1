"""Overshooting-bounded gradient descent (Elsayed, Vasan and Mahmood 2024)."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_rtrl._checks import number, shown
from keras_rtrl._keras import keras


class ObGD(keras.optimizers.SGD):
    """Gradient descent whose step a streaming agent bounds, so that one update cannot overshoot its own target.

    Where the TD error is delta and the eligibility trace z, the parameters move by alpha delta z with

        alpha = learning_rate / max(1, learning_rate kappa max(|delta|, 1) |z|_1)

    Actor and critic each have a trace and a step size. An agent without eligibility traces gets plain gradient
    descent of it.

    Args:
      learning_rate: largest step size; a float or a schedule.
      critic_kappa, actor_kappa: above 0; larger is more careful.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1.0,
        *,
        critic_kappa: float = 2.0,
        actor_kappa: float = 3.0,
        name: str = "ObGD",
        **kwargs: Any,
    ):
        if not isinstance(name, str):
            raise ValueError(f"name must be a string, got {shown(name)}")
        super().__init__(learning_rate, name=name, jit_compile=False, **kwargs)
        self.critic_kappa = number("critic_kappa", critic_kappa, above=0)
        self.actor_kappa = number("actor_kappa", actor_kappa, above=0)

    def bound(self, td_error: tf.Tensor, trace: Sequence[tf.Tensor], kappa: float) -> tf.Tensor:
        """Factor in (0, 1] on the learning rate, for a scalar TD error and a trace, a list of tensors."""
        norm = tf.add_n([tf.reduce_sum(tf.abs(part)) for part in trace])
        rate = self._learning_rate  # not `learning_rate`, which is that of the step before if there is a schedule
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = rate(self.iterations)
        reach = kappa * tf.cast(rate, norm.dtype) * tf.maximum(tf.abs(td_error), 1.0) * norm
        return 1.0 / tf.maximum(reach, 1.0)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("momentum", "nesterov", "jit_compile"):
            config.pop(name, None)
        return {**config, "critic_kappa": self.critic_kappa, "actor_kappa": self.actor_kappa}
