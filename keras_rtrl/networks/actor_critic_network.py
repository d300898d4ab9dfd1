"""The actor-critic network with a recurrent core."""

import gin
import tensorflow as tf
from tf_agents.networks import network
from tf_agents.networks import utils as network_utils
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl._keras import keras
from keras_rtrl.networks.cores import make_core
from keras_rtrl.networks.encoders import make_encoder

_HISTORY = {"observation", "last_reward", "last_action"}


def num_actions(action_spec):
    """Number of actions of a discrete action spec: one integer, lowest action 0.

    Raises:
      ValueError: any other spec.
    """
    spec = action_spec
    if (
        not isinstance(spec, tensor_spec.BoundedTensorSpec)
        or not spec.dtype.is_integer
        or spec.shape.rank != 0
        or spec.minimum != 0
    ):
        raise ValueError(f"action_spec must be one discrete action, an integer scalar from 0, got {spec}")
    return int(spec.maximum) + 1


@gin.configurable(module="keras_rtrl")
class ActorCriticNetwork(network.Network):
    """Encoder -> concat last reward clipped to [-1, 1], one-hot last action -> recurrent core -> policy, value.

    The R2AC network of Irie et al. (ICLR 2024). As a TF-Agents network it acts: called with the state alone it makes
    no traces. A learner uses `encode`, `core` and `heads` (or `unroll`, the three in a row) with a carry.
    """

    def __init__(
        self,
        input_tensor_spec,
        action_spec,
        encoder="mlp",
        encoder_units=None,
        core="elstm",
        units=256,
        gradient="rtrl",
        core_options=None,
        head_units=(),
        use_last_action=True,
        name="ActorCriticNetwork",
    ):
        """Creates the network; its variables come with `create_variables()`.

        Args:
          input_tensor_spec: dict of TensorSpecs "observation" (uint8 is divided by 255), "last_reward" (scalar) and
            "last_action" (as action_spec).
          action_spec: BoundedTensorSpec of one discrete action.
          encoder: "mlp", "nature_cnn" or "impala_deep".
          encoder_units: widths of the encoder's dense layers; None for its own, () for none.
          core: "elstm", "rtu" or "lstm" (keras LSTM; needs gradient="tbptt").
          units: N of the core.
          gradient: "rtrl" (exact over all history carried), "tbptt" (inside a call) or "instant" (inside a step).
          core_options: further arguments of the core's layer, for instance {"forget_bias": 4.0}.
          head_units: widths of tanh layers between the core and the two heads.
          use_last_action: whether the core also sees the last action.
          name: name of the network.

        Raises:
          ValueError: a spec or an argument that does not fit; the message names it.
        """
        if not isinstance(input_tensor_spec, dict) or set(input_tensor_spec) != _HISTORY:
            raise ValueError(f"input_tensor_spec must be a dict of {sorted(_HISTORY)}, got {input_tensor_spec}")
        input_tensor_spec = tensor_spec.from_spec(input_tensor_spec)
        actions = num_actions(tensor_spec.from_spec(action_spec))
        recurrent = make_core(core, units, gradient, dict(core_options or {}))
        super().__init__(input_tensor_spec, state_spec=recurrent.state_spec, name=name)
        self.num_actions = actions
        self._use_last_action = use_last_action
        self._observation_rank = input_tensor_spec["observation"].shape.rank
        self._encoder = make_encoder(encoder, input_tensor_spec["observation"], encoder_units)
        self._core = recurrent
        self._head = [keras.layers.Dense(width, activation="tanh") for width in head_units]
        self._policy = keras.layers.Dense(actions, name="policy")
        self._value = keras.layers.Dense(1, name="value")

    @property
    def core_variables(self):
        """Trainable variables of the recurrent core (its output gate included)."""
        return self._core.trainable_variables

    def get_initial_carry(self, batch_size):
        """Zero carry of `batch_size` streams: state and traces if gradient="rtrl", else the state alone.

        A tuple of float32 tensors [B, ...]. Builds the variables, since traces have the width of the core's input.
        """
        self.create_variables()
        return self._core.get_initial_carry(batch_size)

    def state_of(self, carry):
        """The state in a carry: the network state of a policy."""
        return tuple(carry)[: len(self.state_spec)]

    def encode(self, observation):
        """Features float32 [B, T, D] of observations [B, T, ...]; the encoder runs on all B T frames at once."""
        squash = network_utils.BatchSquash(2)
        features = squash.unflatten(self._encoder(squash.flatten(observation["observation"])))
        last_reward = tf.clip_by_value(tf.cast(observation["last_reward"], tf.float32), -1.0, 1.0)
        parts = [features, last_reward[..., tf.newaxis]]
        if self._use_last_action:
            parts.append(tf.one_hot(observation["last_action"], self.num_actions))
        return tf.concat(parts, axis=-1)

    def core(self, features, reset, carry):
        """Runs the recurrent core.

        Args:
          features: float32 [B, T, D].
          reset: bool [B, T], True where an episode starts with that frame.
          carry: as `get_initial_carry`, or the state alone (then no traces are made).

        Returns:
          (y [B, T, W], carry after frame T-1 in the structure that came).
        """
        return self._core(features, reset, tuple(carry))

    def heads(self, y):
        """(logits [..., A], values [...]) of core outputs [..., W]."""
        for layer in self._head:
            y = layer(y)
        return self._policy(y), tf.squeeze(self._value(y), -1)

    def unroll(self, observation, reset, carry, training=False):
        """encode, core and heads: observations [B, T, ...] -> (logits [B, T, A], values [B, T], carry)."""
        del training
        y, carry = self.core(self.encode(observation), reset, carry)
        logits, values = self.heads(y)
        return logits, values, carry

    def call(self, observation, step_type=None, network_state=(), training=False):
        """Acts on [B, ...] or [B, T, ...]: ((logits [.., A], values [..]), state). FIRST steps reset the state.

        Without step_type nothing is reset; without network_state the state is zero at the start.
        """
        has_time = observation["observation"].shape.rank == self._observation_rank + 2
        if not has_time:
            observation = tf.nest.map_structure(lambda x: tf.expand_dims(x, 1), observation)
        shape = tf.shape(observation["last_reward"])
        if step_type is None:
            reset = tf.zeros(shape, tf.bool)
        else:
            reset = tf.equal(step_type if has_time else tf.expand_dims(step_type, 1), ts.StepType.FIRST)
        if not tf.nest.flatten(network_state or ()):  # None or (), as TF-Agents passes it
            network_state = tuple(tf.zeros([shape[0], *spec.shape], spec.dtype) for spec in self.state_spec)
        logits, values, state = self.unroll(observation, reset, network_state, training)
        if not has_time:
            logits, values = logits[:, 0], values[:, 0]
        return (logits, values), state
