"""The actor-critic network: acting, unrolling, resets, what reaches the core, errors."""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl.networks import ActorCriticNetwork

ACTIONS = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
HISTORY = {
    "observation": tf.TensorSpec([4], tf.float32),
    "last_reward": tf.TensorSpec([], tf.float32),
    "last_action": ACTIONS,
}
CORES = [("elstm", "rtrl"), ("elstm", "tbptt"), ("rtu", "rtrl"), ("rtu", "instant"), ("lstm", "tbptt")]


def make_network(core="elstm", gradient="rtrl", **options):
    return ActorCriticNetwork(HISTORY, ACTIONS, core=core, units=6, gradient=gradient, encoder_units=(5,), **options)


def make_observation(batch, steps, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": tf.constant(rng.normal(size=(batch, steps, 4)), tf.float32),
        "last_reward": tf.constant(rng.normal(size=(batch, steps)), tf.float32),
        "last_action": tf.constant(rng.integers(0, 3, size=(batch, steps)), tf.int64),
    }


def frame(observation, t):
    return {name: value[:, t] for name, value in observation.items()}


@pytest.mark.parametrize(("core", "gradient"), CORES)
def test_stepping_equals_the_unroll_with_resets_in_mid_sequence(core, gradient):
    network = make_network(core, gradient, head_units=(3,))
    network.create_variables()
    observation = make_observation(2, 5)
    step_type = tf.constant([[1, 1, 2, 0, 1], [0, 1, 1, 1, 0]], tf.int32)
    carry = network.get_initial_carry(2)
    carry = tf.nest.map_structure(lambda part: part + 0.1, carry)

    logits, values, end = network.unroll(observation, tf.equal(step_type, 0), carry)
    assert logits.shape == (2, 5, 3)
    assert values.shape == (2, 5)
    tf.nest.map_structure(lambda part, before: part.shape.assert_is_compatible_with(before.shape), end, carry)
    (whole_logits, whole_values), whole_state = network(observation, step_type, network.state_of(carry))

    state = network.state_of(carry)
    for t in range(5):
        (step_logits, step_values), state = network(frame(observation, t), step_type[:, t], state)
        np.testing.assert_allclose(step_logits, logits[:, t], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(step_values, values[:, t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole_logits, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole_values, values, rtol=1e-5, atol=1e-6)
    for end_state in (state, whole_state):
        for part, expected in zip(end_state, network.state_of(end), strict=True):
            np.testing.assert_allclose(part.state, expected.state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("core", "gradient"), CORES)
def test_state_spec_is_known_before_the_first_call(core, gradient):
    network = make_network(core, gradient)
    spec = network.state_spec
    assert not network.built
    assert isinstance(spec, tuple)
    _, state = network(frame(make_observation(2, 1), 0), tf.zeros([2], tf.int32))
    tf.nest.map_structure(lambda part, of: of.shape.assert_is_compatible_with(part.shape[1:]), state, spec)


@pytest.mark.parametrize(("core", "gradient"), CORES)
def test_first_forgets_the_carry(core, gradient):
    network = make_network(core, gradient, use_last_action=False, use_last_reward=False)
    observation = make_observation(2, 3)
    zero = network.get_initial_carry(2)
    reset = tf.constant([[True, False, False], [False, False, False]])
    *_, fresh = network.unroll(observation, tf.zeros([2, 3], tf.bool), zero)
    *_, end = network.unroll(observation, reset, tf.nest.map_structure(lambda part: part + 0.3, zero))
    for part, fresh_part in zip(tf.nest.flatten(end), tf.nest.flatten(fresh), strict=True):
        np.testing.assert_allclose(part[0], fresh_part[0], rtol=1e-5, atol=1e-6)
        assert np.abs(part[1] - fresh_part[1]).max() > 1e-3


def test_only_rtrl_carries_traces():
    # D = 5 features + last reward + 3 actions
    (carry,) = make_network(gradient="rtrl").get_initial_carry(2)
    assert carry.S.shape[:2] == (2, 5 + 1 + 3)
    (carry,) = make_network(gradient="tbptt").get_initial_carry(2)
    assert not carry.has_traces
    assert [part.has_traces for part in make_network("lstm", "tbptt").get_initial_carry(2)] == [False, False]


def test_what_the_core_sees():
    observation, reset = make_observation(2, 1), tf.zeros([2, 1], tf.bool)
    observation["last_reward"] = tf.constant([[7.0], [-0.5]])
    observation["last_action"] = tf.constant([[2], [0]], tf.int64)
    features = make_network().encode(observation, reset)
    np.testing.assert_allclose(features[:, 0, 5:], [[1.0, 0, 0, 1], [-0.5, 1, 0, 0]])
    assert make_network(use_last_action=False).encode(observation, reset).shape == (2, 1, 6)


@pytest.mark.parametrize(
    "actions",
    [
        ACTIONS,
        tensor_spec.BoundedTensorSpec([2], tf.int64, [0, 0], [1, 2]),
        tensor_spec.BoundedTensorSpec([2], tf.float32, -1.0, 1.0),
    ],
    ids=["choice", "choices", "floats"],
)
def test_where_an_episode_starts_there_is_no_last_action_and_no_last_reward(actions):
    network = ActorCriticNetwork({**HISTORY, "last_action": actions}, actions, units=6, encoder_units=(5,))
    garbage = np.ones(actions.shape, actions.dtype.as_numpy_dtype) * (1 if actions.dtype.is_integer else np.nan)
    observation = {
        "observation": tf.ones([1, 2, 4]),
        "last_reward": tf.constant([[np.nan, 0.5]], tf.float32),
        "last_action": tf.constant([[garbage, np.zeros_like(garbage)]], actions.dtype),
    }
    features = network.encode(observation, tf.constant([[True, False]]))[0, :, 5:].numpy()
    np.testing.assert_array_equal(features[0], 0)
    after_zeros = {0: [0.5, 1, 0, 0], 1: [0.5, 1, 0, 1, 0, 0] if actions.dtype.is_integer else [0.5, 0, 0]}
    np.testing.assert_array_equal(features[1], after_zeros[actions.shape.rank])


def test_the_encoder_can_read_the_history_too():
    network = make_network(history="before_encoder")
    network.create_variables()
    observation, reset = make_observation(2, 3), tf.constant([[False, False, True], [True, False, False]])
    # observation, reward, the one-hot of three actions
    assert (4 + 1 + 3, 5) in [tuple(variable.shape) for variable in network.variables]
    features = network.encode(observation, reset)
    assert features.shape == (2, 3, 5)
    seen = [
        observation["observation"],
        tf.clip_by_value(observation["last_reward"], -1, 1)[..., None] * tf.cast(~reset, tf.float32)[..., None],
        tf.one_hot(observation["last_action"], 3) * tf.cast(~reset, tf.float32)[..., None],
    ]
    expected = network._encoder(tf.reshape(tf.concat(seen, -1), [6, 8]))
    np.testing.assert_allclose(tf.reshape(features, [6, 5]), expected, rtol=1e-6)


@pytest.mark.parametrize("spec", [tf.TensorSpec([], tf.float32), tf.TensorSpec([3], tf.uint8)])
def test_history_beside_a_number_and_beside_bytes(spec):
    specs = {**HISTORY, "observation": spec}
    network = ActorCriticNetwork(specs, ACTIONS, units=6, encoder_units=(5,), history="before_encoder")
    raw = tf.fill([1, 2, *spec.shape], tf.cast(51, spec.dtype))
    observation = {**make_observation(1, 2), "observation": raw}
    features = network.encode(observation, tf.ones([1, 2], tf.bool))
    scaled = raw / 255 if spec.dtype == tf.uint8 else raw
    numbers = np.concatenate([np.reshape(scaled, [2, -1]), np.zeros([2, 4])], -1).astype(np.float32)
    np.testing.assert_allclose(features[0], network._encoder(numbers), rtol=1e-6)


def test_history_before_an_encoder_of_images_is_refused():
    specs = {**HISTORY, "observation": tf.TensorSpec([8, 8, 3], tf.uint8)}
    with pytest.raises(ValueError, match=r"history='before_encoder' takes an observation that is a number or a vector"):
        ActorCriticNetwork(specs, ACTIONS, history="before_encoder")


def test_carry_takes_no_gradient():
    for core, gradient in CORES:
        network = make_network(core, gradient)
        carry = network.get_initial_carry(2)
        with tf.GradientTape() as tape:
            tape.watch(carry)
            logits, _, _ = network.unroll(make_observation(2, 3), tf.zeros([2, 3], tf.bool), carry)
        gradients = tape.gradient(logits, carry, unconnected_gradients="zero")
        assert all(np.abs(part).max() == 0 for part in tf.nest.flatten(gradients))


@pytest.mark.parametrize("shared", [True, False])
def test_orthogonal_heads(shared):
    network = make_network(head_units=(6,), shared_heads=shared, orthogonal_heads=True)
    network.create_variables()
    heads = network.trainable_variables[-8 + 2 * shared :]
    kernels = [variable.numpy() for variable in heads if variable.shape.rank == 2]
    hidden, outputs = kernels[: 2 - shared], {kernel.shape: kernel for kernel in kernels[-2:]}
    for kernel in hidden:
        np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(6), atol=1e-5)
    np.testing.assert_allclose(outputs[6, 3].T @ outputs[6, 3], 1e-4 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(outputs[6, 1].T @ outputs[6, 1], [[1]], rtol=1e-5)


@pytest.mark.parametrize("step_type", [ts.StepType.FIRST, ts.StepType.MID])
def test_gin_configures_it(step_type):
    import gin

    with gin.unlock_config():
        gin.parse_config("ActorCriticNetwork.units = 9\nActorCriticNetwork.core = 'rtu'")
    try:
        network = ActorCriticNetwork(HISTORY, ACTIONS)
    finally:
        gin.clear_config()
    (logits, _), state = network(frame(make_observation(2, 1), 0), tf.fill([2], step_type), ())
    assert logits.shape == (2, 3)
    assert state[0].state.shape == (2, 9, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_spec": tensor_spec.TensorSpec([2], tf.float32)}, "BoundedTensorSpec"),
        ({"action_spec": tensor_spec.BoundedTensorSpec([2, 2], tf.int64, 0, 1)}, "vector of integers"),
        ({"action_spec": tensor_spec.BoundedTensorSpec([], tf.int64, 1, 3)}, "from 0"),
        ({"input_tensor_spec": HISTORY["observation"]}, "last_reward"),
        ({"core": "rnn"}, "core must be one of"),
        ({"core": "gru", "gradient": "rtrl"}, "tbptt"),
        ({"core": "stack", "gradient": "tbptt", "core_options": {"frames": 0}}, "frames"),
        ({"core": "stack", "gradient": "tbptt", "core_options": {"frames": 10**12}}, "frames=1000000000000 would take"),
        ({"name": "\u00b2"}, "name must be None or"),
        ({"name": 3}, "name must be None or"),
        ({"units": 8, "recurrent_parameters": 1000}, "either units or recurrent_parameters"),
        ({"units": None, "recurrent_parameters": 0}, "parameters"),
        ({"units": 0}, "units must"),
        ({"core": "lstm", "gradient": "rtrl"}, "tbptt"),
        ({"gradient": "bptt"}, "gradient"),
    ],
)
def test_bad_arguments(options, message):
    arguments = {"input_tensor_spec": HISTORY, "action_spec": ACTIONS, **options}
    with pytest.raises(ValueError, match=message):
        ActorCriticNetwork(**arguments)


def test_all_but_the_encoder_is_in_float32():
    network = make_network("rtu", "rtrl", encoder_dtype="bfloat16", normalize_observation=True)
    network.create_variables()
    observation, carry = make_observation(2, 3), network.get_initial_carry(2)
    with tf.GradientTape() as tape:
        outputs, values, after = network.unroll(observation, tf.zeros([2, 3], tf.bool), carry)
        loss = tf.reduce_sum(outputs) + tf.reduce_sum(values)
    gradients = tape.gradient(loss, network.trainable_variables)
    for part in (outputs, values, *tf.nest.flatten(after), *network.trainable_variables, *gradients):
        assert part.dtype == tf.float32
    rounded = network.encode(observation, tf.zeros([2, 3], tf.bool))[..., :5]
    np.testing.assert_array_equal(rounded, tf.cast(tf.cast(rounded, tf.bfloat16), tf.float32))
