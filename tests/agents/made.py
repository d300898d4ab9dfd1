"""What tests of all agents make: the specs of a history, agents, and experience to change."""

import numpy as np
import tensorflow as tf
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl._keras import keras


def history(actions, width=3):
    """The specs of observations [width] after actions of the spec `actions`."""
    return {
        "observation": tf.TensorSpec([width], tf.float32),
        "last_reward": tf.TensorSpec([], tf.float32),
        "last_action": actions,
    }


def agent(kind, network, config, streams=1, /, **arguments):
    """An agent of the class `kind`, whose weights stay as they are; `arguments` replace its own."""
    arguments = {
        "time_step_spec": ts.time_step_spec(network.input_tensor_spec),
        "action_spec": network.actions.spec,
        "network": network,
        "optimizer": keras.optimizers.SGD(0.0),
        "num_streams": streams,
        "config": config,
        "train_step_counter": tf.Variable(0, dtype=tf.int64),
        **arguments,
    }
    return kind(**arguments)


def experience(step_type, observation, action, info):
    """Arrays of zeros, discounts of 1, with the step types [B, T + 1]; those after them begin with the first again.

    observation, action, info: specs of a frame.
    """
    step_type = np.array(step_type, np.int32)

    def zeros(spec):
        return np.zeros([*step_type.shape, *spec.shape], spec.dtype.as_numpy_dtype)

    return trajectory.Trajectory(
        step_type=step_type,
        observation=tf.nest.map_structure(zeros, observation),
        action=zeros(action),
        policy_info=tf.nest.map_structure(zeros, info),
        next_step_type=np.roll(step_type, -1, 1),
        reward=np.zeros(step_type.shape, np.float32),
        discount=np.ones(step_type.shape, np.float32),
    )
