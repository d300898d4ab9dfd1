"""What test_replicas.py runs in processes of their own: the same experience on one device, on two, in two processes.

    python replicas_program.py devices FOLDER
    TF_CONFIG=... python replicas_program.py worker FOLDER

Each writes the agents' variables after UPDATES updates to FOLDER as NAME.npz.
"""

import contextlib
import os
import pathlib
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np
import tensorflow as tf

B, T, UPDATES = 4, 6, 20
OBSERVATION, ACTIONS = 3, 3
KINDS = ("r2ac", "ppo", "ppo_fresh")


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
        agent_class, config, optimizer = R2ACAgent, R2ACConfig(gradient_clip=10.0), tf_keras.optimizers.SGD(1e-2)
    else:
        stale = kind == "ppo"
        agent_class, optimizer = RTRLPPOAgent, tf_keras.optimizers.Adam(1e-3)
        config = PPOConfig(
            epochs=2, minibatches=4, chunk=3, gradient_clip=1.5, stale_gradient=stale, stale_target=stale
        )
    time_steps, counter = ts.time_step_spec(observations), tf.Variable(0, dtype=tf.int64)
    return agent_class(time_steps, action_spec, network, optimizer, num_streams, config, counter)


def learn(agent, rollouts):
    """The numbers [updates, L] of each update."""
    train = tf.function(agent.train, autograph=False)
    infos = [train(rollout) for rollout in rollouts]
    return np.array([[info.loss, *info.extra] for info in infos])


def values(agent):
    agent.gather_streams()
    parts = {
        "parameter": agent.network.trainable_variables,
        "optimizer": agent.optimizer.variables,
        "carry": agent.carry,
        "other": agent.variables,  # the statistics of rewards and observations, seeds and counts among them
    }
    return {f"{name}_{i:02}": v.numpy() for name, variables in parts.items() for i, v in enumerate(variables)}


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
    cut = UPDATES // 2
    for kind in KINDS:
        for name, scope in (("one", contextlib.nullcontext()), ("two", strategy.scope())):
            with scope:
                agent = make_agent(kind)
            if kind == "ppo_fresh":
                save(folder / f"{kind}_{name}.npz", agent, learn(agent, rollouts))
                continue
            numbers = learn(agent, rollouts[:cut])
            checkpoints(folder / kind / name, agent).save()
            save(folder / f"{kind}_{name}_half.npz", agent, numbers)
            numbers = np.concatenate([numbers, learn(agent, rollouts[cut:])])
            save(folder / f"{kind}_{name}.npz", agent, numbers)
        if kind == "ppo_fresh":
            continue
        for source, target in (("one", "two"), ("two", "one"), ("two", "two")):
            with strategy.scope() if target == "two" else contextlib.nullcontext():
                agent = make_agent(kind, seed=8)
            checkpoints(folder / kind / source, agent).restore()
            save(folder / f"{kind}_{source}_to_{target}_half.npz", agent)
            if kind == "r2ac":
                save(folder / f"{kind}_{source}_to_{target}.npz", agent, learn(agent, rollouts[cut:]))


def worker(folder):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank = strategy.cluster_resolver.task_id
    rollouts = experience()
    own = slice(rank * B // 2, (rank + 1) * B // 2)
    rollouts = [tf.nest.map_structure(lambda x: x[own], rollout) for rollout in rollouts]
    cut = UPDATES // 2
    for kind in ("r2ac", "ppo"):
        with strategy.scope():
            agent = make_agent(kind, seed=3 + rank)  # the chief's weights and order of chunks hold
        numbers = learn(agent, rollouts[:cut])
        saver = checkpoints(folder / kind / "workers", agent)
        saver.save()
        agent.reset_carry()
        saver.restore()
        numbers = np.concatenate([numbers, learn(agent, rollouts[cut:])])
        save(folder / f"{kind}_worker{rank}.npz", agent, numbers)
        assert agent.streams.any(rank == 1)
        assert not agent.streams.any(False)
        assert agent.streams.is_chief == (rank == 0)


if __name__ == "__main__":
    {"devices": devices, "worker": worker}[sys.argv[1]](pathlib.Path(sys.argv[2]))
