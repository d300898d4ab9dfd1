"""TF-Agents networks that hold a layer: pickles (for workers) and copies (target networks) are equal and apart."""

import copy
import pickle

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.networks import network
from tf_agents.specs import tensor_spec

from keras_rtrl._keras import keras
from keras_rtrl.networks import ActorCriticNetwork

B, T, D = 2, 3, 4


class Holder(network.Network):
    """A network that is one layer."""

    def __init__(self, config, name="Holder"):
        super().__init__(tf.TensorSpec((T, D)), state_spec=(), name=name)
        self._layer = keras.layers.deserialize(config)

    def call(self, x, step_type=None, network_state=(), training=False):
        del step_type, training
        return self._layer(x), network_state


def check_copies(network, inputs):
    network.create_variables()
    want = tf.nest.flatten(network(*inputs))
    own_copy = network.copy()
    own_copy.create_variables()
    for a, b in zip(own_copy.variables, network.variables, strict=True):
        a.assign(b)
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network), own_copy):
        assert len(other.variables) == len(network.variables) > 0
        for a, b in zip(tf.nest.flatten(other(*inputs)), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for variable in other.variables:
            variable.assign(tf.ones_like(variable))
        for a, b in zip(tf.nest.flatten(network(*inputs)), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_pickling_and_copy(case):
    config = keras.layers.serialize(case.make(return_sequences=True))
    check_copies(Holder(config), [np.random.default_rng(1).normal(size=(B, T, D)).astype("float32")])


@pytest.mark.parametrize(("core", "encoder"), [("elstm", "mlp"), ("lru", "impala_deep"), ("rtu", "nature_cnn")])
def test_pickling_and_copy_of_the_actor_critic(core, encoder):
    shape = [D] if encoder == "mlp" else [36, 36, 1]
    action = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
    spec = {"observation": tf.TensorSpec(shape), "last_reward": tf.TensorSpec([]), "last_action": action}
    made = ActorCriticNetwork(spec, action, core=core, units=3, encoder=encoder, encoder_units=(5,))
    observation = {
        "observation": tf.random.stateless_normal([B, T, *shape], [1, 2]),
        "last_reward": tf.ones([B, T]),
        "last_action": tf.ones([B, T], tf.int64),
    }
    check_copies(made, [observation, tf.ones([B, T], tf.int32)])
