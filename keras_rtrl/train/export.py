"""The exported policy: a SavedModel of stock TensorFlow operations, loaded by TensorFlow alone.

```python
import tensorflow as tf
policy = tf.saved_model.load("policy")
state = policy.signatures["initial_state"](batch_size=tf.constant(1))
out = policy.signatures["action"](observation=..., last_reward=..., last_action=..., step_type=..., **state)
```
"""

import tensorflow as tf

from keras_rtrl.export import StatefulModule
from keras_rtrl.train.run_folder import writing


def flat(observation):
    """An agent's observation as a dict without dicts in it: their keys joined by an underscore; in sorted order."""
    parts = {}
    for name, value in sorted(observation.items()):
        if isinstance(value, dict):
            parts.update({f"{name}_{key}": part for key, part in flat(value).items()})
        else:
            parts[name] = value
    return parts


class PolicyModule(StatefulModule):
    """The greedy policy of an ActorCriticNetwork, its state without traces.

    Signatures, flat tensors by name, batch size B free:
      initial_state(batch_size int32 []) -> state_0, state_1, ...: float32 [B, ...], zeros.
      action(observation [B, ...], last_reward float32 [B], last_action [B, ...], step_type int32 [B] (0 if an episode
        begins: then the state is reset, and last_reward and last_action are ignored), state_0, ...) ->
        action [B, ...], value float32 [B], state_0, ..., and the policy's parameters: logits [B, A], or mean and
        log_std [B, A] of continuous actions. These may exceed their bounds: clip them. An observation with parts is
        given as observation_rgb, observation_instruction.

    If the agent scales rewards, values are those of scaled rewards: multiply by the variable `reward_scale`.
    """

    def __init__(self, network, reward_scaler=None):
        specs = flat(network.input_tensor_spec)
        inputs = {name: tf.TensorSpec([None, *spec.shape], spec.dtype) for name, spec in specs.items()}
        inputs["step_type"] = tf.TensorSpec([None], tf.int32)
        states = {
            f"state_{i}": tf.TensorSpec([None, *spec.shape], spec.dtype)
            for i, spec in enumerate(tf.nest.flatten(network.state_spec))
        }

        def action(**inputs):
            state = tf.nest.pack_sequence_as(network.state_spec, [inputs.pop(name) for name in states])
            step_type = inputs.pop("step_type")
            observation = tf.nest.pack_sequence_as(network.input_tensor_spec, [inputs[name] for name in specs])
            (outputs, value), state = network(observation, step_type=step_type, network_state=state)
            actions = network.actions
            return {
                "action": actions.mode(outputs),
                **actions.info(outputs),
                "value": value,
                **dict(zip(states, tf.nest.flatten(state), strict=True)),
            }

        super().__init__(action, inputs, states=states, layers=network.submodules)
        self.action = self.step
        self.reward_scale = tf.Variable(1.0 if reward_scaler is None else reward_scaler.scale, dtype=tf.float64)


def save(network, path, reward_scaler=None):
    """Writes the policy of `network` as a SavedModel into the folder `path`. Raises OSError if that fails."""
    module = PolicyModule(network, reward_scaler)
    signatures = {"action": module.action, "initial_state": module.initial_state}
    with writing(path):
        tf.saved_model.save(module, path, signatures=signatures)
