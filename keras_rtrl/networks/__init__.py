"""Encoders and the actor-critic network with a recurrent core."""

from keras_rtrl._tf_agents import require_legacy_keras

require_legacy_keras()

from keras_rtrl.networks.actor_critic_network import ActorCriticNetwork  # noqa: E402
from keras_rtrl.networks.encoders import ENCODERS, make_encoder  # noqa: E402

__all__ = ["ENCODERS", "ActorCriticNetwork", "make_encoder"]
