"""The exported policy: a SavedModel of stock TensorFlow operations, loaded by TensorFlow alone.

```python
import tensorflow as tf
policy = tf.saved_model.load("policy")
state = policy.signatures["initial_state"](batch_size=tf.constant(1))
out = policy.signatures["action"](observation=..., last_reward=..., last_action=..., step_type=..., **state)
```
"""

import contextlib

import tensorflow as tf

from keras_rtrl.layers import RTRL


@contextlib.contextmanager
def _stock_ops(module):
    """Inside, the RTRL layers of `module` run on plain TensorFlow: no file may need the native op to load."""
    layers = [part for part in module.submodules if isinstance(part, RTRL)]
    before = [layer.implementation for layer in layers]
    for layer in layers:
        layer.implementation = "tf"
    try:
        yield
    finally:
        for layer, implementation in zip(layers, before, strict=True):
            layer.implementation = implementation


def flat(observation):
    """An agent's observation as a dict without dicts in it: their keys joined by an underscore; in sorted order."""
    parts = {}
    for name, value in sorted(observation.items()):
        if isinstance(value, dict):
            parts.update({f"{name}_{key}": part for key, part in flat(value).items()})
        else:
            parts[name] = value
    return parts


class PolicyModule(tf.Module):
    """The greedy policy of an ActorCriticNetwork, its state without traces.

    Signatures, flat tensors by name, batch size B free:
      initial_state(batch_size int32 []) -> state_0, state_1, ...: float32 [B, ...], zeros.
      action(observation [B, ...], last_reward float32 [B], last_action [B, ...], step_type int32 [B] (0 where an
        episode begins: the state is reset there), state_0, ...) -> action [B, ...], value float32 [B], state_0, ...,
        and the policy's parameters: logits [B, A], or mean and log_std [B, A] of continuous actions. These may
        exceed their bounds: clip them. An observation of parts comes as observation_rgb, observation_instruction.

    Values are of scaled rewards where the agent scales them: times the variable `reward_scale` they are the
    environment's.
    """

    def __init__(self, network, reward_scaler=None):
        super().__init__()
        self.reward_scale = tf.Variable(1.0 if reward_scaler is None else reward_scaler.scale, dtype=tf.float64)
        self._weights = list(network.variables)  # the module must not track the Keras object itself
        inputs = {
            name: tf.TensorSpec([None, *spec.shape], spec.dtype, name=name)
            for name, spec in flat(network.input_tensor_spec).items()
        }
        inputs["step_type"] = tf.TensorSpec([None], tf.int32, name="step_type")
        specs = tf.nest.flatten(network.state_spec)
        for i, spec in enumerate(specs):
            inputs[f"state_{i}"] = tf.TensorSpec([None, *spec.shape], spec.dtype, name=f"state_{i}")
        state_spec, observation_spec = network.state_spec, network.input_tensor_spec

        def action(**inputs):
            state = tf.nest.pack_sequence_as(state_spec, [inputs.pop(f"state_{i}") for i in range(len(specs))])
            step_type = inputs.pop("step_type")
            observation = tf.nest.pack_sequence_as(observation_spec, [inputs[name] for name in flat(observation_spec)])
            (outputs, value), state = network(observation, step_type=step_type, network_state=state)
            state = {f"state_{i}": part for i, part in enumerate(tf.nest.flatten(state))}
            actions = network.actions
            return {"action": actions.mode(outputs), **actions.info(outputs), "value": value, **state}

        def initial_state(batch_size):
            return {
                f"state_{i}": tf.zeros(tf.concat([[batch_size], spec.shape], 0), spec.dtype)
                for i, spec in enumerate(specs)
            }

        with _stock_ops(network):
            self.action = tf.function(action, autograph=False).get_concrete_function(**inputs)
        self.initial_state = tf.function(initial_state, autograph=False).get_concrete_function(
            batch_size=tf.TensorSpec([], tf.int32, name="batch_size")
        )


def save(network, path, reward_scaler=None):
    """Writes the policy of `network` as a SavedModel into the folder `path`."""
    module = PolicyModule(network, reward_scaler)
    signatures = {"action": module.action, "initial_state": module.initial_state}
    tf.saved_model.save(module, path, signatures=signatures)
