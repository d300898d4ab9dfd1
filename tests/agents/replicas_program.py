"""What test_replicas.py runs in processes of their own: the same experience on one device, on two, in two processes.

    python replicas_program.py devices FOLDER
    TF_CONFIG=... python replicas_program.py worker FOLDER

Each writes the agents' variables after UPDATES updates to FOLDER as NAME.npz.
"""

import contextlib
import functools
import json
import os
import pathlib
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np
import tensorflow as tf

B, T, UPDATES = 4, 6, 20
OBSERVATION, ACTIONS = 3, 3
KINDS = ("r2ac", "ppo")


def experience():
    """UPDATES trajectories [B, T + 1] that overlap by one frame; episodes of other lengths in every stream."""
    from tf_agents.trajectories import trajectory

    random = np.random.default_rng(5)
    frames = UPDATES * T + 1
    step_type = np.ones([B, frames], np.int32)
    for stream, lengths in enumerate([(5, 9), (7,), (1000,), (2, 16, 4)]):
        begin = 0
        while begin < frames:
            end = begin + lengths[begin % len(lengths)]
            step_type[stream, begin] = 0
            step_type[stream, end : end + 1] = 2
            begin = end + 1
    shape = [B, frames]
    scale = 1.0 + np.arange(B, dtype=np.float32)[:, None]  # streams that normalisation must not take for alike
    observation = {
        "observation": random.normal(size=[*shape, OBSERVATION]).astype(np.float32) * scale[..., None],
        "last_reward": random.normal(size=shape).astype(np.float32),
        "last_action": random.integers(ACTIONS, size=shape).astype(np.int64),
    }
    whole = trajectory.Trajectory(
        step_type=step_type,
        observation=observation,
        action=random.integers(ACTIONS, size=shape).astype(np.int64),
        policy_info={"logits": random.normal(size=[*shape, ACTIONS]).astype(np.float32) * 0.3},
        next_step_type=np.concatenate([step_type[:, 1:], step_type[:, -1:]], axis=1),
        reward=random.normal(size=shape).astype(np.float32) * scale,
        discount=(random.random(shape) > 0.1).astype(np.float32),
    )
    cuts = range(0, UPDATES * T, T)
    return [tf.nest.map_structure(lambda x, t=t: tf.constant(x[:, t : t + T + 1]), whole) for t in cuts]


def make_agent(kind, seed=3, num_streams=B):
    import tf_keras
    from tf_agents.specs import tensor_spec
    from tf_agents.trajectories import time_step as ts

    from keras_rtrl.agents import PPOConfig, R2ACAgent, R2ACConfig, RTRLPPOAgent
    from keras_rtrl.networks import ActorCriticNetwork

    tf_keras.utils.set_random_seed(seed)
    action_spec = tensor_spec.BoundedTensorSpec([], tf.int64, 0, ACTIONS - 1)
    observations = {
        "observation": tf.TensorSpec([OBSERVATION], tf.float32),
        "last_reward": tf.TensorSpec([], tf.float32),
        "last_action": action_spec,
    }
    network = ActorCriticNetwork(
        observations,
        action_spec,
        core="elstm" if kind == "r2ac" else "rtu",
        units=5,
        encoder_units=(4,),
        normalize_observation=kind != "r2ac",
    )
    if kind == "r2ac":  # a rule under which the size of a gradient counts
        agent_class, config, optimizer = R2ACAgent, R2ACConfig(gradient_clipping=5.0), tf_keras.optimizers.SGD(1e-2)
    else:  # minibatches of two chunks of four streams: often one replica has none of them
        agent_class, optimizer = RTRLPPOAgent, tf_keras.optimizers.Adam(1e-3)
        config = PPOConfig(
            num_epochs=2, num_minibatches=4, chunk=3, gradient_clipping=1.5, stale_gradient=False, stale_target=False
        )
    time_steps, counter = ts.time_step_spec(observations), tf.Variable(0, dtype=tf.int64)
    return agent_class(
        time_steps, action_spec, network, optimizer, num_streams=num_streams, config=config, train_step_counter=counter
    )


@functools.cache  # an agent's function is traced once
def graph(method):
    return tf.function(method, autograph=False)


def learn(agent, rollouts):
    """The numbers [updates, L] of each update."""
    infos = [graph(agent.train)(rollout) for rollout in rollouts]
    return np.array([[info.loss, *info.extra] for info in infos])


def act(agent, rollout):
    """Actions drawn for one observation that all streams of all processes see alike, 100 times: [100, streams]."""
    from tf_agents.trajectories import time_step as ts

    action = graph(agent.collect_policy.action)
    streams = agent.streams.worker
    observation = tf.nest.map_structure(lambda x: tf.zeros_like(x[:, 0]), rollout.observation)
    state = agent.collect_policy.get_initial_state(streams)
    return np.stack([action(ts.restart(observation, streams), state).action.numpy() for _ in range(100)])


def values(agent):
    agent.gather_streams()
    noise = agent.collect_policy.generator.state
    parts = {
        "parameter": agent.network.trainable_variables,
        "optimizer": agent.optimizer.variables,
        "carry": tf.nest.flatten(agent.carry),
        # the statistics of rewards and observations, seeds and counts among them
        "other": [variable for variable in agent.variables if variable is not noise],
        "noise": [noise],
    }
    return {f"{name}_{i:02}": v.numpy() for name, variables in parts.items() for i, v in enumerate(variables)}


def refuse(agent, rollout):
    """Nothing of an update is applied, on any replica, where one stream of one of them has a reward that is NaN."""
    broken = np.array(rollout.reward)
    if agent.streams.ranges()[-1].stop == B:  # this process has the last stream
        broken[-1, 1] = np.nan
    before = values(agent)
    (numbers,) = learn(agent, [rollout._replace(reward=tf.constant(broken))])
    assert not np.isfinite(numbers[0])
    for name, value in values(agent).items():
        if np.issubdtype(value.dtype, np.floating):  # counters and seeds go on
            np.testing.assert_array_equal(value, before[name], err_msg=name)


def checkpoints(folder, agent):
    from keras_rtrl.train.checkpoints import Checkpoints, Counters
    from keras_rtrl.train.run_folder import RunFolder

    counters = Counters()
    counters.updates = 1
    return Checkpoints(RunFolder(str(folder)), counters, agent, ())


def save(path, agent, numbers=()):
    np.savez(path, numbers=numbers, **values(agent))


def devices(folder):
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    rollouts = experience()
    for kind in KINDS:
        for name, scope in (("one", contextlib.nullcontext()), ("two", strategy.scope())):
            with scope:
                agent = make_agent(kind)
            save(folder / f"{kind}_{name}.npz", agent, learn(agent, rollouts))
            checkpoints(folder / kind / name, agent).save()
            refuse(agent, rollouts[-1])
        for source, target in (("one", "two"), ("two", "one"), ("two", "two")):
            with strategy.scope() if target == "two" else contextlib.nullcontext():
                agent = make_agent(kind, seed=8)
            checkpoints(folder / kind / source, agent).restore()
            save(folder / f"{kind}_{source}_to_{target}.npz", agent)
    (folder / "errors.json").write_text(json.dumps(errors(strategy, rollouts[0])))


def errors(strategy, rollout):
    """The messages of what is refused, by name."""
    with strategy.scope():
        agent = make_agent("r2ac")
    cases = {
        "streams": lambda: make_agent("r2ac", num_streams=3),
        "rows": lambda: agent.train(tf.nest.map_structure(lambda x: x[:2], rollout)),
    }
    messages = {}
    for name, case in cases.items():
        try:
            with strategy.scope():
                case()
        except ValueError as error:
            messages[name] = str(error)
    for part in ("network", "optimizer"):
        other = make_agent("r2ac")
        parts = {"network": agent.network, "optimizer": agent.optimizer, part: getattr(other, part)}
        try:
            with strategy.scope():
                specs = agent.time_step_spec, agent.action_spec
                type(agent)(*specs, parts["network"], parts["optimizer"], num_streams=B, config=agent.config)
        except ValueError as error:
            messages[part] = str(error)
    return messages


def worker(folder, *kinds):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank = strategy.cluster_resolver.task_id
    rollouts = experience()
    own = slice(rank * B // 2, (rank + 1) * B // 2)
    rollouts = [tf.nest.map_structure(lambda x: x[own], rollout) for rollout in rollouts]
    cut = UPDATES // 2
    for kind in kinds:
        with strategy.scope():
            agent = make_agent(kind, seed=3 + rank)  # the chief's weights and order of chunks hold
        before = act(agent, rollouts[0])
        numbers = learn(agent, rollouts[:cut])
        saver = checkpoints(folder / kind / "workers", agent)
        saver.save()
        agent.reset_carry()
        saver.restore()
        numbers = np.concatenate([numbers, learn(agent, rollouts[cut:])])
        save(folder / f"{kind}_worker{rank}.npz", agent, numbers)
        refuse(agent, rollouts[-1])
        np.savez(folder / f"{kind}_actions{rank}.npz", before=before, after=act(agent, rollouts[0]))
        assert agent.streams.any_process(rank == 1)
        assert not agent.streams.any_process(False)
        assert agent.streams.is_chief == (rank == 0)


if __name__ == "__main__":
    {"devices": devices, "worker": worker}[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
