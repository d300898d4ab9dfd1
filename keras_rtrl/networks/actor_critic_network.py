"""The actor-critic network with a recurrent core."""

import math
import re
from collections.abc import Sequence
from typing import Any

import gin
import numpy as np
import tensorflow as tf
from tf_agents.networks import network
from tf_agents.networks import utils as network_utils
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.typing import types

from keras_rtrl._checks import flag, one_of, shown, widths
from keras_rtrl._keras import keras
from keras_rtrl.cells import RTRLCell
from keras_rtrl.engine import Carry
from keras_rtrl.networks.actions import make_actions
from keras_rtrl.networks.cores import make_core, units_for, zeros
from keras_rtrl.networks.encoders import make_encoder, to_floats
from keras_rtrl.networks.normalizer import RunningNormalizer, clipped

_HISTORY = {"observation", "last_reward", "last_action"}
_SCOPE = r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*"


def _as_specs(name, specs):
    try:
        return tf.nest.map_structure(_with_bounds_in_dimensions, tensor_spec.from_spec(specs))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be of TensorSpecs, got {shown(specs)}") from error


def _with_bounds_in_dimensions(spec):
    """The spec of a uint8 array; TF-Agents, which draws such an array, adds 1 to a 255 without dimensions (NumPy 2)."""
    if not isinstance(spec, tensor_spec.BoundedTensorSpec) or spec.dtype != tf.uint8 or spec.shape.rank == 0:
        return spec
    low, high = (np.broadcast_to(bound, spec.shape) for bound in (spec.minimum, spec.maximum))
    return tensor_spec.BoundedTensorSpec(spec.shape, spec.dtype, low, high, name=spec.name)


def _with_history(spec, extra):
    """The spec of an observation with `extra` more numbers, the history."""
    if isinstance(spec, dict) or spec.shape.rank > 1:
        raise ValueError(
            f"history='before_encoder' takes an observation that is a number or a vector, got {shown(spec)}"
        )
    return tf.TensorSpec([spec.shape.num_elements() + extra], keras.backend.floatx())


def _core(core, units, parameters, gradient, options, width):
    """The core, of `units` or of about so many `parameters`, for features of a width."""
    if units is not None and parameters is not None:
        raise ValueError(
            f"give either units or recurrent_parameters, got units={shown(units)} and "
            f"recurrent_parameters={shown(parameters)}"
        )
    if parameters is not None:
        units = units_for(core, width, parameters, gradient, options)
    elif units is None and isinstance(core, str):
        units = 256
    return make_core(core, units, gradient, options, width)


def _hidden(head_units, orthogonal):
    return [_dense(units, orthogonal, math.sqrt(2.0), activation="tanh") for units in head_units]


def _dense(units, orthogonal, gain, **arguments):
    """A dense layer of the heads; its weights are orthogonal with `gain`, or as Keras starts them."""
    initializer = keras.initializers.Orthogonal(gain) if orthogonal else "glorot_uniform"
    return keras.layers.Dense(units, kernel_initializer=initializer, **arguments)


@gin.configurable(module="keras_rtrl")
class ActorCriticNetwork(network.Network):
    """Encoder -> recurrent core -> policy, value; last reward, clipped to [-1, 1], and last action join the features.

    With its defaults the R2AC network of Irie et al. (ICLR 2024). With history="before_encoder" the encoder reads last
    reward and last action too, as in Elelimy et al. (2024). As a TF-Agents network it acts: called with the state
    alone it makes no traces. A learner uses `encode`, `core` and `heads` (or `unroll`, the three in a row) with a
    carry. What the policy's outputs [..., P] mean is `actions`' to say: logits of discrete actions, mean and log
    standard deviation of continuous ones.
    """

    encoder_parts = ("_encoder", "_normalizer")  # what `encode` is made of, as checkpoints name it

    # Long by its arguments and its docstring.
    def __init__(
        self,
        input_tensor_spec: dict[str, types.NestedTensorSpec],
        action_spec: types.NestedTensorSpec,
        *,
        encoder: str | keras.layers.Layer = "mlp",
        encoder_units: Sequence[int] | None = None,
        core: str | RTRLCell | keras.layers.Layer = "elstm",
        units: int | None = None,
        gradient: str | None = None,
        core_options: dict[str, Any] | None = None,
        head_units: Sequence[int] = (),
        use_last_action: bool = True,
        use_last_reward: bool = True,
        shared_heads: bool = True,
        orthogonal_heads: bool = False,
        normalize_observation: bool = False,
        recurrent_parameters: int | None = None,
        train_encoder: bool = True,
        history: str = "after_encoder",
        encoder_dtype: str | None = None,
        name: str | None = "ActorCriticNetwork",
    ):
        """Creates the network; its variables come with `create_variables()`.

        Args:
          input_tensor_spec: dict of TensorSpecs "observation" (as `make_encoder` takes it), "last_reward" (scalar) and
            "last_action" (as action_spec).
          action_spec: BoundedTensorSpec: an integer, a vector of integers, or floats.
          encoder: "mlp", "nature_cnn", "impala_shallow", "impala_deep" or "pooled_cnn"; or a Keras layer from [N, ...]
            to [N, D], which is copied; or "module:name" of what makes one.
          encoder_units: widths of the encoder's dense layers; None for its own, () for none.
          core: "elstm", "rtu", "lru", "egru" or "mingru"; keras' "lstm" or "gru"; "stack" (a dense layer over the last
            few features). Or an object, which is copied: an RTRLCell, an RTRL layer, an RTRLStack, or a Keras cell. Or
            "module:name" of what makes such an object of `units` and `core_options`.
          units: N of the core; None: 256, or as `recurrent_parameters` has it, or as the object has it.
          gradient: "rtrl" (exact over all history carried), "tbptt" (inside a call) or "instant" (inside a step). None:
            the layer's own if `core` is a layer; "tbptt" for Keras' cells and "stack"; else "rtrl".
          core_options: further arguments of the core's layer, for instance {"forget_bias": 4.0}; for a stack
            {"frames": 4}.
          head_units: widths of tanh layers between the core and the two heads.
          use_last_action: whether the network also sees the last action (one-hot; floats as they are), zeros if an
            episode starts.
          use_last_reward: whether the network also sees the last reward, zero if an episode starts.
          shared_heads: whether the layers of `head_units` serve both heads, or each head has its own.
          orthogonal_heads: whether the heads start with orthogonal weights: gain sqrt(2) in the layers of `head_units`,
            0.01 in the policy's last layer, so that at first all actions are about equally likely, and 1 in the value's
            (Huang et al. 2022, "The 37 Implementation Details of Proximal Policy Optimization"). False: as Keras starts
            dense layers.
          normalize_observation: whether each feature of the observation is normalised by its running mean and standard
            deviation (`update_normalizer`) before the encoder.
          recurrent_parameters: choose `units` so that the core has about so many trainable weights.
          train_encoder: False leaves the encoder as it is, and the normalisation before it: no agent trains them.
          history: "after_encoder": last reward and last action join the encoder's features; "before_encoder": they join
            the observation, which must be a number or a vector.
          encoder_dtype: "bfloat16": the encoder computes in it, about twice as fast on images if the processor has
            AVX-512 BF16 or AMX, or the GPU is an Ampere or later; its weights and all that follows are in float32.
            None: in float32. A layer given as `encoder` has a dtype policy of its own.
          name: name of the network.

        Raises:
          ValueError: a spec or an argument that does not fit; the message names it.
        """
        if not isinstance(input_tensor_spec, dict) or set(input_tensor_spec) != _HISTORY:
            raise ValueError(f"input_tensor_spec must be a dict of {sorted(_HISTORY)}, got {shown(input_tensor_spec)}")
        flag("use_last_action", use_last_action)
        flag("use_last_reward", use_last_reward)
        flag("shared_heads", shared_heads)
        flag("orthogonal_heads", orthogonal_heads)
        flag("normalize_observation", normalize_observation)
        flag("train_encoder", train_encoder)
        one_of("history", history, ("after_encoder", "before_encoder"))
        if name is not None and not (isinstance(name, str) and re.fullmatch(_SCOPE, name)):
            raise ValueError(f"name must be None or what TensorFlow takes for a name, {_SCOPE}, got {shown(name)}")
        head_units = widths("head_units", head_units)
        input_tensor_spec = _as_specs("input_tensor_spec", input_tensor_spec)
        if normalize_observation and isinstance(input_tensor_spec["observation"], dict):
            raise ValueError("normalize_observation takes an observation of one array, not of parts")
        actions = make_actions(_as_specs("action_spec", action_spec))
        observation_spec = input_tensor_spec["observation"]
        extra = bool(use_last_reward) + (actions.width if use_last_action else 0)
        encoded_spec = _with_history(observation_spec, extra) if history == "before_encoder" else observation_spec
        dense = make_encoder(encoder, encoded_spec, units=encoder_units, dtype=encoder_dtype)
        zeros = tf.nest.map_structure(lambda spec: tf.zeros([1, *spec.shape], spec.dtype), encoded_spec)
        width = dense(zeros).shape[-1] + (0 if history == "before_encoder" else extra)
        recurrent = _core(core, units, recurrent_parameters, gradient, core_options, width)
        super().__init__(input_tensor_spec, state_spec=recurrent.state_spec, name=name)
        self.actions = actions
        self.recurrent_core = recurrent
        self._use_last_action, self._use_last_reward = use_last_action, use_last_reward
        self._history_first = history == "before_encoder"
        self._normalizer = RunningNormalizer(observation_spec.shape) if normalize_observation else None
        self._encoder = dense
        self._encoder.trainable = train_encoder
        self._policy_head = _hidden(head_units, orthogonal_heads)
        self._value_head = self._policy_head if shared_heads else _hidden(head_units, orthogonal_heads)
        self._policy = _dense(actions.width, orthogonal_heads, 0.01, name="policy")
        self._value = _dense(1, orthogonal_heads, 1.0, name="value")

    @property
    def core_variables(self) -> Sequence[tf.Variable]:
        """Trainable variables of the recurrent core (its output gate included)."""
        return self.recurrent_core.trainable_variables

    @property
    def encoder_variables(self) -> Sequence[tf.Variable]:
        """Trainable variables of the encoder; none with train_encoder=False."""
        return self._encoder.trainable_variables

    def get_initial_carry(self, batch_size: int) -> tuple[Carry, ...]:
        """Zero carry of `batch_size` streams: state and traces if gradient="rtrl", else the state alone.

        A tuple of `engine.Carry`: of each RTRL layer of the core, or of each tensor of another core's state. Builds the
        variables, since traces have the width of the core's input.
        """
        self.create_variables()
        return self.recurrent_core.get_initial_carry(batch_size)

    def state_of(self, carry: tuple[Carry, ...]) -> tuple[Carry, ...]:
        """The carry without its traces: the network state of a policy."""
        return tuple(part.without_traces() for part in carry)

    def encode(self, observation: dict[str, types.NestedTensor], reset: tf.Tensor) -> tf.Tensor:
        """Features [B, T, D] of observations [B, T, ...]; the encoder runs on all B T frames at once.

        Where an episode starts with a frame (reset, bool [B, T]) there is no last reward and no last action: their
        features are zeros there whatever the observation holds, and the zeros are no discrete action's one-hot.
        """
        squash = network_utils.BatchSquash(2)
        raw = tf.nest.map_structure(squash.flatten, observation["observation"])
        if self._normalizer is not None:
            raw = self._normalizer(tf.cast(raw, keras.backend.floatx()))
        last = self._last(observation, reset)
        if self._history_first:
            size = self.input_tensor_spec["observation"].shape.num_elements()
            flat = tf.reshape(to_floats(raw), [-1, size])
            raw, last = tf.concat([flat, *(squash.flatten(part) for part in last)], axis=-1), []
        encoded = tf.cast(self._encoder(raw), keras.backend.floatx())
        features = squash.unflatten(encoded if self._encoder.trainable else tf.stop_gradient(encoded))
        return tf.concat([features, *last], axis=-1)

    def _last(self, observation, reset):
        """Last reward and last action as features, each [B, T, ...]."""
        last = []
        if self._use_last_reward:
            last_reward = tf.cast(observation["last_reward"], keras.backend.floatx())
            last.append(clipped(last_reward, -1.0, 1.0)[..., tf.newaxis])
        if self._use_last_action:
            last.append(self.actions.features(observation["last_action"]))
        return [tf.where(reset[..., tf.newaxis], tf.zeros_like(part), part) for part in last]

    @property
    def normalizer(self) -> RunningNormalizer | None:
        """The `RunningNormalizer` of observations, None without one."""
        return self._normalizer

    def update_normalizer(self, observation: dict[str, types.NestedTensor]) -> None:
        """Takes observations [..., shape] into the running normalisation, if there is one and it is not frozen."""
        if self._normalizer is not None and self._encoder.trainable:
            self._normalizer.update(observation["observation"])

    def core(
        self, features: tf.Tensor, reset: tf.Tensor, carry: tuple[Carry, ...]
    ) -> tuple[tf.Tensor, tuple[Carry, ...]]:
        """Runs the recurrent core.

        Args:
          features: [B, T, D].
          reset: bool [B, T], True if an episode starts with that frame.
          carry: as `get_initial_carry`, or `state_of` it (then no traces are made).

        Returns:
          (y [B, T, W], carry after frame T-1 in the structure that came).
        """
        return self.recurrent_core(features, reset, carry)

    def heads(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(policy outputs [..., P], values [...]) of core outputs [..., W]."""
        for_policy = for_value = y
        for layer in self._policy_head:
            for_policy = layer(for_policy)
        for layer in self._value_head:
            for_value = layer(for_value)
        return self.actions.outputs(self._policy(for_policy)), tf.squeeze(self._value(for_value), -1)

    def unroll(
        self,
        observation: dict[str, types.NestedTensor],
        reset: tf.Tensor,
        carry: tuple[Carry, ...],
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor, tuple[Carry, ...]]:
        """encode, core and heads: observations [B, T, ...] -> (policy outputs [B, T, P], values [B, T], carry)."""
        del training
        y, carry = self.core(self.encode(observation, reset), reset, carry)
        outputs, values = self.heads(y)
        return outputs, values, carry

    def call(
        self,
        observation: dict[str, tf.Tensor | dict[str, tf.Tensor]],
        step_type: tf.Tensor | None = None,
        network_state: tuple[Carry, ...] | None = (),
        training: bool = False,
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], tuple[Carry, ...]]:
        """Acts on [B, ...] or [B, T, ...]: ((policy outputs [.., P], values [..]), state). FIRST steps reset the state.

        Without step_type nothing is reset; without network_state the state is zero at the start.
        """
        has_time = observation["last_reward"].shape.rank == 2
        if not has_time:
            observation = tf.nest.map_structure(lambda x: tf.expand_dims(x, 1), observation)
        shape = tf.shape(observation["last_reward"])
        if step_type is None:
            reset = tf.zeros(shape, tf.bool)
        else:
            reset = tf.equal(step_type if has_time else tf.expand_dims(step_type, 1), ts.StepType.FIRST)
        if not tf.nest.flatten(network_state or ()):  # None or (), as TF-Agents passes it
            network_state = zeros(self.state_spec, shape[0])
        outputs, values, state = self.unroll(observation, reset, network_state, training)
        if not has_time:
            outputs, values = outputs[:, 0], values[:, 0]
        return (outputs, values), state
