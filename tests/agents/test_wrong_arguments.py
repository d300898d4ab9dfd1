"""What agents, their settings, networks and drivers refuse: one error that names the argument, nothing computed."""

import functools

import made
import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from keras_rtrl import environments
from keras_rtrl._keras import keras
from keras_rtrl.agents import (
    PPOConfig,
    R2ACAgent,
    R2ACConfig,
    RTRLPPOAgent,
    StreamACAgent,
    StreamACConfig,
    TDLambdaAgent,
    TDLambdaConfig,
)
from keras_rtrl.agents.policy import ActorCriticPolicy
from keras_rtrl.agents.ppo import losses as ppo_losses
from keras_rtrl.agents.r2ac import losses as r2ac_losses
from keras_rtrl.agents.reward_scaler import RewardScaler
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.networks.normalizer import RunningNormalizer

ACTIONS = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 2)
HISTORY = made.history(ACTIONS)
AGENTS = {
    R2ACAgent: (R2ACConfig(), 2, 4),
    RTRLPPOAgent: (PPOConfig(chunk=2, num_minibatches=2), 2, 4),
    StreamACAgent: (StreamACConfig(), 1, 1),
    TDLambdaAgent: (TDLambdaConfig(), 1, 1),
}


@functools.cache
def agent_of(kind):
    return make(kind)


def network():
    return ActorCriticNetwork(HISTORY, ACTIONS, units=3, encoder_units=())


def make(kind=R2ACAgent, **arguments):
    config, streams, _ = AGENTS[kind]
    return made.agent(kind, network(), config, streams, **arguments)


def experience_of(kind):
    _, streams, steps = AGENTS[kind]
    return made.experience(np.ones([streams, steps + 1]), HISTORY, ACTIONS, {"logits": tf.TensorSpec([3], tf.float32)})


def changed(experience, field, change):
    return experience._replace(**{field: change(getattr(experience, field))})


def without(key):
    return lambda parts: {name: value for name, value in parts.items() if name != key}


EXPERIENCES = {
    "None": (lambda e: None, "experience must be a Trajectory of tensors .*, got None"),
    "text": (lambda e: "x", "experience must be a Trajectory of tensors .*, got 'x'"),
    "array": (lambda e: np.zeros([2, 3]), "experience must be a Trajectory of tensors .*, got array"),
    "no reward": (
        lambda e: changed(e, "reward", lambda _: None),
        "experience.reward must be a tensor of float32, got None",
    ),
    "missing key": (
        lambda e: changed(e, "observation", without("last_action")),
        r"experience.observation must have the parts .*'last_action'.*, got \['last_reward', 'observation'\]",
    ),
    "no dict": (
        lambda e: changed(e, "observation", lambda x: x["observation"]),
        "experience.observation must have the parts",
    ),
    "no info": (
        lambda e: changed(e, "policy_info", lambda _: ()),
        r"experience.policy_info must have the parts \['logits'\]",
    ),
    "float64": (lambda e: changed(e, "reward", np.float64), "experience.reward must be of float32, got float64"),
    "float actions": (lambda e: changed(e, "action", np.float32), "experience.action must be of int64, got float32"),
    "text reward": (lambda e: changed(e, "reward", lambda x: "x"), "experience.reward must be of float32, got string"),
    "rank": (lambda e: changed(e, "discount", lambda x: x[0]), r"experience.discount must have shape .*, got \("),
    "width": (
        lambda e: changed(e, "policy_info", lambda x: {"logits": x["logits"][..., :2]}),
        r"experience.policy_info.logits must have shape \('B', 'T \+ 1', 3\), got",
    ),
    "other frames": (
        lambda e: changed(e, "reward", lambda x: x[:, :-1]),
        "experience.reward must have step_type's shape",
    ),
    "streams": (
        lambda e: tf.nest.map_structure(lambda x: np.concatenate([x, x, x]), e),
        r"experience must hold num_streams=\d streams, got \d",
    ),
    "frames": (lambda e: tf.nest.map_structure(lambda x: x[:, :1], e), "experience must hold .* frames"),
    "step_type": (lambda e: changed(e, "step_type", lambda x: x * 7), "experience.step_type must lie in 0..2, got 7"),
    "discount": (lambda e: changed(e, "discount", lambda x: x * 5), "experience.discount must lie in 0..1, got 5.0"),
    "negative discount": (
        lambda e: changed(e, "discount", lambda x: -x),
        "experience.discount must lie in 0..1, got -1.0",
    ),
    "action": (lambda e: changed(e, "action", lambda x: x + 3), "experience.action must lie in 0..2, got 3"),
}


@pytest.mark.parametrize("case", EXPERIENCES)
@pytest.mark.parametrize("kind", AGENTS)
def test_experience(kind, case):
    agent, (change, message) = agent_of(kind), EXPERIENCES[case]
    for method in (agent.train, agent.loss):
        with pytest.raises((ValueError, TypeError), match=message):
            method(change(experience_of(kind)))
    assert agent.train_step_counter == 0


@pytest.mark.parametrize("kind", AGENTS)
def test_experience_of_arrays_is_taken(kind):
    assert np.isfinite(make(kind).train(experience_of(kind)).loss)


OTHER = {**HISTORY, "observation": tf.TensorSpec([4], tf.float32)}
PARTS = {
    "network None": ({"network": None}, "network must be a .*ActorCriticNetwork, got None"),
    "network other": ({"network": keras.Sequential()}, "network must be a .*ActorCriticNetwork, got <"),
    "optimizer None": ({"optimizer": None}, "optimizer must be an optimiser of tf_keras.optimizers, got None"),
    "optimizer text": ({"optimizer": "adam"}, "optimizer must be an optimiser of tf_keras.optimizers, got 'adam'"),
    "config": ({"config": PPOConfig()}, "config must be a R2ACConfig, got PPOConfig"),
    "config text": ({"config": "x"}, "config must be a R2ACConfig, got 'x'"),
    "counter": ({"train_step_counter": 3}, "train_step_counter must be an integer tf.Variable or None, got 3"),
    "streams": ({"num_streams": 1.5}, "num_streams must be a whole number of at least 1, got 1.5"),
    "many streams": ({"num_streams": 10**12}, "num_streams=1000000000000: .* GiB"),
    "specs": ({"time_step_spec": None}, "time_step_spec must be a TimeStep of specs, got None"),
    "observation": (
        {"time_step_spec": ts.time_step_spec(OTHER)},
        "time_step_spec.observation must be what the network was",
    ),
    "observation of another kind": (
        {"time_step_spec": ts.time_step_spec(list(HISTORY.values()))},
        "time_step_spec.observation must be what the network was",
    ),
    "action": ({"action_spec": None}, "action_spec must be what the network was made for"),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_of_an_agent(case):
    arguments, message = PARTS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        make(**arguments)


POLICIES = {
    "network": ({"network": None}, "network must be a .*ActorCriticNetwork, got None"),
    "spec": ({"time_step_spec": "x"}, "time_step_spec must be a TimeStep of specs, got 'x'"),
    "observation": (
        {"time_step_spec": ts.time_step_spec(OTHER)},
        "time_step_spec.observation must be what the network",
    ),
    "action": ({"action_spec": ACTIONS.dtype}, "action_spec must be what the network was made for"),
}


@pytest.mark.parametrize("case", POLICIES)
def test_parts_of_a_policy(case):
    arguments, message = POLICIES[case]
    parts = {"time_step_spec": ts.time_step_spec(HISTORY), "action_spec": ACTIONS, "network": network()}
    with pytest.raises((ValueError, TypeError), match=message):
        ActorCriticPolicy(**{**parts, **arguments})


FRAMES = np.zeros([2, 3], np.float32)
VTRACE = {
    **dict.fromkeys(("log_rho_t", "discount_t", "reward_t", "value_t"), FRAMES),
    "bootstrap_value": FRAMES[:, 0],
    "boundary_t": FRAMES > 0,
}
R2AC = {
    **dict.fromkeys(("log_pi_t", "entropy_t", "value_t"), FRAMES),
    "vtrace_t": r2ac_losses.VTrace(FRAMES, FRAMES),
    "boundary_t": FRAMES > 0,
}
GAE = {name: VTRACE[name] for name in ("reward_t", "discount_t", "value_t", "bootstrap_value", "boundary_t")}
GAE["lambda_value"] = 0.9
PPO = dict.fromkeys(("log_ratio_t", "entropy_t", "value_t", "old_value_t", "advantage_t", "return_t"), FRAMES)
PPO |= {"boundary_t": FRAMES > 0, "importance_ratio_clipping": 0.2, "value_clipping": None}
LOSSES = {r2ac_losses.vtrace: VTRACE, r2ac_losses.r2ac_loss: R2AC, ppo_losses.gae: GAE, ppo_losses.ppo_terms: PPO}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_take_arrays_and_name_what_is_wrong(loss):
    right = LOSSES[loss]
    assert all(np.all(np.isfinite(part)) for part in tf.nest.flatten(loss(**right)))
    for name, value in right.items():
        wrong = ["x", "0.5"]
        if value is not None:
            wrong.append(None)
        if isinstance(value, np.ndarray):
            wrong += [value.astype(np.int64), value.astype("U"), value[:1]]
        for other in wrong:
            with pytest.raises((ValueError, TypeError), match=name):
                loss(**{**right, name: other})


NORMALIZERS = {
    "shape": (lambda: RunningNormalizer("x"), "shape must be that of an observation, got 'x'"),
    "unknown shape": (lambda: RunningNormalizer([None]), "shape must be known in full"),
    "limit": (lambda: RunningNormalizer([], limit=0), "limit must be a finite number above 0, got 0"),
    "x": (lambda: RunningNormalizer([3])(None), "x must be a tensor of floats, got None"),
    "dtype": (lambda: RunningNormalizer([3])(np.zeros([2, 3], int)), "x must be a tensor of floats, got int64"),
    "width": (lambda: RunningNormalizer([3])(FRAMES[:, :2]), r"x must have a shape that ends in \(3,\), got \(2, 2\)"),
    "update": (lambda: RunningNormalizer([3]).update("x"), "x must be a tensor of numbers, got string"),
    "update None": (lambda: RunningNormalizer([3]).update(None), "x must be a tensor of numbers, got None"),
    "rank": (lambda: RunningNormalizer([2, 3]).update(FRAMES[0]), "x must have a shape that ends in"),
    "counted": (lambda: RunningNormalizer([3]).update(FRAMES, [1, 0]), "counted must be a tensor of bool, got int32"),
    "rows": (lambda: RunningNormalizer([3]).update(FRAMES, [True]), r"counted must have the shape of .*, got \(1,\)"),
    "gamma": (lambda: RewardScaler("0.9", 1), "gamma must be a finite number of at least 0 and at most 1, got '0.9'"),
    "streams": (lambda: RewardScaler(0.9, 0), "num_streams must be a whole number of at least 1, got 0"),
    "reward limit": (lambda: RewardScaler(0.9, 1, limit=np.inf), "limit must be a finite number above 0, got inf"),
    "reward": (lambda: RewardScaler(0.9, 2)(None), "reward must be a tensor of floats, got None"),
    "rewards": (lambda: RewardScaler(0.9, 2).update(None, FRAMES > 0), "reward must be a tensor of floats, got None"),
    "boundary": (lambda: RewardScaler(0.9, 2).update(FRAMES, FRAMES), "boundary must be a tensor of bool, got float32"),
    "frames": (lambda: RewardScaler(0.9, 2).update(FRAMES, FRAMES[:, 1:] > 0), "expected one shape for all of"),
    "other streams": (lambda: RewardScaler(0.9, 3).update(FRAMES, FRAMES > 0), "with num_streams=3 rows"),
}


@pytest.mark.parametrize("case", NORMALIZERS)
def test_running_statistics(case):
    call, message = NORMALIZERS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


NUMBER, FLAG = "must be a finite number", "must be True or False"
HUGE = 10**400
CONFIGS = {
    R2ACConfig: {
        "gamma": ["0.9", 1.1, -0.1, HUGE, None],
        "value_pred_loss_coef": [-1, np.inf, "x"],
        "entropy_regularization": [np.inf, np.nan, -1],
        "reward_clipping": [0, np.inf],
        "gradient_clipping": [np.inf, 0, "40"],
        "train_core": ["no", 1, None],
    },
    PPOConfig: {
        "gamma": ["0.9", 2],
        "lambda_value": [1.5],
        "importance_ratio_clipping": [0, np.inf],
        "value_clipping": [0],
        "entropy_regularization": [np.inf],
        "gradient_clipping": [np.inf],
        "num_epochs": [0, HUGE],
        "num_minibatches": [1.5],
        "chunk": ["16"],
        "stale_gradient": ["no"],
        "stale_target": [0],
        "normalize_rewards": ["no"],
    },
    StreamACConfig: {
        "gamma": ["0.9"],
        "lambda_value": [HUGE],
        "entropy_regularization": [np.inf],
        "value_pred_loss_coef": [-1],
        "normalize_rewards": ["no"],
        "window": [0],
    },
    TDLambdaConfig: {"gamma": [1.01], "lambda_value": ["x"], "window": [2.5]},
}
SETTINGS = [
    (kind, name, value) for kind, names in CONFIGS.items() for name, values in names.items() for value in values
]


@pytest.mark.parametrize(
    ("kind", "name", "value"), SETTINGS, ids=[f"{k.__name__}-{n}-{i}" for i, (k, n, _) in enumerate(SETTINGS)]
)
def test_settings(kind, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be (a finite number|a whole number|True or False)"):
        kind(**{name: value})


FLAGS = (
    "use_last_action", "use_last_reward", "shared_heads", "orthogonal_heads", "normalize_observation", "train_encoder",
)  # fmt: skip
NETWORKS = {
    **{name: ({name: "no"}, f"^{name} {FLAG}, got 'no'") for name in FLAGS},
    "head_units number": (
        {"head_units": 64},
        "^head_units must be a list or tuple of whole numbers of at least 1, got 64",
    ),
    "head_units zero": ({"head_units": (0,)}, "^head_units must be a whole number of at least 1, got 0"),
    "head_units huge": ({"head_units": (10**9, 10**9)}, r"^head_units=\(1000000000, 1000000000\) would take .* GiB"),
    "encoder_units": ({"encoder_units": 64}, "^encoder_units must be a list or tuple"),
    "encoder_units huge": ({"encoder_units": (10**12,)}, r"^encoder_units=\(1000000000000,\) would take .* GiB"),
    "encoder_dtype": (
        {"encoder_dtype": "float16"},
        r"^encoder_dtype must be one of \(None, 'bfloat16'\), got 'float16'",
    ),
    "encoder_dtype type": ({"encoder_dtype": 16}, "^encoder_dtype must be one of .*, got 16"),
    "encoder": ({"encoder": ["mlp"]}, r"^encoder must be a name or a layer of tf_keras, got \['mlp'\]"),
    "core": ({"core": ["elstm"]}, r"^core must be a name, an RTRLCell, .*, got \['elstm'\]"),
    "gradient": ({"gradient": "bptt"}, "^gradient must be one of .*, got 'bptt'"),
    "units": ({"units": 10**9}, "^units=1000000000 would take at least .* GiB of memory; this machine has"),
    "units int64": ({"units": 2**63}, r"^units must be a whole number of at least 1 and below 2\*\*63"),
    "units float": ({"units": HUGE}, "^units must be a whole number"),
    "units keras": ({"units": 10**7, "core": "lstm", "gradient": "tbptt"}, "^units=10000000 would take"),
    "options text": ({"core_options": "x"}, "^core_options must be a dict or None, got 'x'"),
    "options name": (
        {"core_options": {"forget_bais": 1}},
        r"^core_options of core 'elstm' must be among .*, got 'forget_bais' \(did you mean 'forget_bias'\?\)",
    ),
    "options dtype": (
        {"core_options": {"dtype": "float16"}},
        "^core_options of core 'elstm' must be among .*, got 'dtype'",
    ),
    "options layer": ({"core_options": {"name": "x"}}, "^core_options of core 'elstm' must be among .*, got 'name'"),
    "options value": (
        {"core_options": {"forget_bias": "x"}},
        "^core_options: forget_bias must be a finite number, got 'x'",
    ),
    "options keras": (
        {"core": "gru", "gradient": "tbptt", "core_options": {"dropuot": 1}},
        r"^core_options of core 'gru' must be among .*, got 'dropuot' \(did you mean 'dropout'\?\)",
    ),
    "options stack": (
        {"core": "stack", "gradient": "tbptt", "core_options": {"frames": 0}},
        "^core_options: frames must be",
    ),
    "options key": ({"core_options": {3: 1}}, "^core_options of core 'elstm' must be among .*, got 3"),
    "few": ({"units": None, "recurrent_parameters": 3}, "^recurrent_parameters must be at least [0-9]+, .* got 3"),
    "many": (
        {"units": None, "recurrent_parameters": 10**15},
        "^recurrent_parameters=1000000000000000 would take .* GiB",
    ),
    "parameters": ({"units": None, "recurrent_parameters": "x"}, "^recurrent_parameters must be a whole number"),
    "action_spec": ({"action_spec": None}, "^action_spec must be of TensorSpecs, got None"),
    "input_tensor_spec": ({"input_tensor_spec": None}, "^input_tensor_spec must be a dict of"),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_networks(case):
    arguments, message = NETWORKS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        ActorCriticNetwork(**{"input_tensor_spec": HISTORY, "action_spec": ACTIONS, **arguments})


def test_units_for_a_number_of_parameters():
    for core, gradient in (("elstm", "rtrl"), ("rtu", "rtrl"), ("gru", "tbptt"), ("stack", "tbptt")):
        network = ActorCriticNetwork(
            HISTORY, ACTIONS, encoder_units=(), core=core, gradient=gradient, units=None, recurrent_parameters=2000
        )
        network.create_variables()
        assert abs(sum(int(tf.size(v)) for v in network.core_variables) - 2000) < 150


@functools.cache
def environment():
    return environments.with_history(environments.make("CartPole-v1", num_envs=2, seed=0))


@functools.cache
def policy():
    env = environment()
    specs = [tensor_spec.from_spec(spec) for spec in (env.time_step_spec(), env.action_spec())]
    network = ActorCriticNetwork(specs[0].observation, specs[1], units=3, encoder_units=())
    return make(R2ACAgent, time_step_spec=specs[0], action_spec=specs[1], network=network).collect_policy


DRIVERS = {
    "env": ({"env": None}, "^env must be a PyEnvironment or a TFEnvironment, got None"),
    "policy": ({"policy": None}, "^policy must be a TFPolicy, .*, got None"),
    "observers": ({"observers": [3]}, r"^observers must be a list of callables of one Trajectory, got \[3\]"),
    "no list": ({"observers": 3}, "^observers must be a list of callables of one Trajectory, got 3"),
    "num_steps": ({"num_steps": 0}, "^num_steps must be a whole number of at least 1, got 0"),
    "memory": ({"num_steps": 10**12}, "^num_steps=1000000000000: a rollout would take at least .* GiB"),
}


@pytest.mark.parametrize("case", DRIVERS)
def test_drivers(case):
    arguments, message = DRIVERS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        RolloutDriver(**{"env": environment(), "policy": policy(), "num_steps": 2, **arguments})


@pytest.mark.parametrize(("field", "value"), [("discount", 5.0), ("step_type", 7)])
def test_time_steps_that_no_environment_gives(field, value, monkeypatch):
    env = environment()
    driver = RolloutDriver(env, policy(), num_steps=2)
    time_step = env.reset()
    wrong = np.full_like(getattr(time_step, field), value)
    if field == "step_type":
        time_step = time_step._replace(step_type=wrong)
    else:  # the first time step's discount is in no frame
        step = env.wrapped_env()._step
        monkeypatch.setattr(env.wrapped_env(), "_step", lambda action: step(action)._replace(discount=wrong))
    with pytest.raises(ValueError, match=f"^env gave a {field} of {value}; it must lie in 0"):
        driver.run(time_step)
