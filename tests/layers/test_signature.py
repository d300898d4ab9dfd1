"""Traces belong to the layer that made them: a carry of another layer is refused where that can be known."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl._keras import keras
from keras_rtrl.layers import ELSTM, LRU, RTRLStack

B, T, D, N = 2, 4, 3, 3
X = np.random.default_rng(1).normal(size=(B, T, D)).astype("float32")
REFUSED = r"initial_state: S(_\d)? was made by layer maker: .* not to those of other\. Give the state alone"


def elstm(name, **kwargs):
    layer = ELSTM(N, return_state=True, name=name, **kwargs)
    layer.build((None, None, D))
    return layer


@pytest.fixture(scope="module")
def pair():
    return elstm("maker"), elstm("other")


def test_traces_of_another_layer_are_refused(pair):
    maker, other = pair
    _, state, S, r = maker(X)
    _, own_state, own_S, own_r = other(X)
    for carry in ([state, S, r], [own_state, S, own_r], [own_state, own_S, r]):
        with pytest.raises(ValueError, match=r"initial_state: (S|r) was made by layer maker"):
            other(X, initial_state=carry)
    other(X, initial_state=state)  # as from an encoder to a decoder
    other(X, initial_state=[state, own_S, own_r])


def test_in_a_function_and_in_a_functional_model(pair):
    maker, other = pair

    @tf.function
    def function(x):
        _, *carry = maker(x)
        return other(x, initial_state=carry)

    with pytest.raises(ValueError, match=REFUSED):
        function(X)
    x = keras.Input((None, D))
    _, *carry = maker(x)
    for layer in (other, ELSTM(N, name="other")):  # the second is not built yet
        with pytest.raises(ValueError, match=REFUSED):
            layer(x, initial_state=carry)
    handed_on = keras.Model(x, other(x, initial_state=carry[0]))
    again = keras.Model(x, maker(x, initial_state=carry))
    for model in (handed_on, again):
        assert tf.nest.flatten(model(X))[0].shape == (B, N)


def test_layers_of_a_stack_keep_theirs():
    def stack(*names):
        return RTRLStack([ELSTM(N, name=name) for name in names], return_state=True, name="stack")

    one, two = stack("maker", "other"), stack("another", "other")
    _, *carry = one(X)
    one(X, initial_state=carry)
    with pytest.raises(ValueError, match=r"initial_state: S_1 was made by layer maker: .* those of another"):
        two(X, initial_state=carry)
    with pytest.raises(ValueError, match=r"initial_state: S_1 was made by layer other: .* those of maker"):
        one(X, initial_state=[*carry[3:], *carry[:3]])
    symbol = keras.Input((None, D))
    _, *carry = one(symbol)
    one(symbol, initial_state=carry)
    with pytest.raises(ValueError, match=r"initial_state: S_1 was made by layer other: .* those of maker"):
        one(symbol, initial_state=[*carry[3:], *carry[:3]])


def test_a_copy_with_the_same_weights_goes_on(pair):
    maker, _ = pair
    copy = elstm("copy", implementation="tf")
    copy.set_weights(maker.get_weights())
    _, *carry = maker(X)
    np.testing.assert_allclose(copy(X, initial_state=carry)[0], maker(X, initial_state=carry)[0], rtol=1e-5)


def test_what_cannot_be_known_is_taken(pair):
    """The same tensors through whatever makes new ones of them, of the layer's own carry: no false alarm."""
    layer, other = pair
    _, *carry = layer(X)
    _, *second = layer(2 * X)
    want = layer(X, initial_state=carry)[0]
    step = tf.function(layer)
    ways = {
        "arrays": [np.array(v) for v in carry],
        "variables": [tf.Variable(v).read_value() for v in carry],
        "dataset": next(iter(tf.data.Dataset.from_tensors(tuple(carry)))),
        "joined and cut": [tf.concat([v, w], 0)[:B] for v, w in zip(carry, second, strict=True)],
    }
    for way, value in ways.items():
        np.testing.assert_allclose(layer(X, initial_state=list(value))[0], want, rtol=1e-5, err_msg=way)
    np.testing.assert_allclose(step(X, initial_state=carry)[0], want, rtol=1e-5)
    other(X, initial_state=ways["arrays"])  # arrays tell nothing of who made them

    given = [keras.Input(v.shape[1:]) for v in carry]
    x = keras.Input((None, D))
    model = keras.Model([x, *given], layer(x, initial_state=given))
    _, *carry = model([tf.constant(X), *carry])
    model([tf.constant(X), *carry])


def test_another_cell_of_the_same_shapes():
    one, other = (LRU(N, return_state=True, name=name) for name in ("maker", "other"))
    _, *carry = one(X)
    other.build((None, None, D))
    with pytest.raises(ValueError, match=REFUSED):
        other(X, initial_state=carry)
