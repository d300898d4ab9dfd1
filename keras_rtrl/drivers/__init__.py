"""Drivers: what steps an environment and hands rollouts to a learner."""

from keras_rtrl._tf_agents import require_legacy_keras

require_legacy_keras()

from keras_rtrl.drivers.rollout_driver import RolloutDriver  # noqa: E402

__all__ = ["RolloutDriver"]
