"""TF-Agents networks that hold a layer: what copies and pickles them (target networks, workers) gets an equal one."""

import copy
import pickle

import numpy as np
import tensorflow as tf
from tf_agents.networks import sequential

B, T, D = 2, 3, 4


def test_pickling_and_copy(case):
    x = np.random.default_rng(1).normal(size=(B, T, D)).astype("float32")
    network = sequential.Sequential([case.make(return_sequences=True)], input_spec=tf.TensorSpec((T, D)))
    network.create_variables()
    want, _ = network(x)
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        np.testing.assert_allclose(other(x)[0], want, rtol=1e-6)
    other = network.copy()
    other.create_variables()
    assert not {id(v) for v in other.variables} & {id(v) for v in network.variables}
    for a, b in zip(other.variables, network.variables, strict=True):
        a.assign(b)
    np.testing.assert_allclose(other(x)[0], want, rtol=1e-6)
