"""The acting side of all actor-critic agents."""

import tensorflow as tf
from tf_agents.policies import tf_policy
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import policy_step
from tf_agents.trajectories import time_step as ts

from keras_rtrl._checks import shown
from keras_rtrl.distributed.replicas import on_host
from keras_rtrl.networks import ActorCriticNetwork


class ActorCriticPolicy(tf_policy.TFPolicy):
    """Samples actions from an actor-critic network.

    Its state is the network's state (no traces); its info holds the behaviour policy's parameters by name: {"logits":
    [A]} of discrete actions, {"mean", "log_std"} of continuous ones, which are not clipped to their bounds. Actions
    are drawn from a generator of its own, a variable: seeded from `tf.random.set_seed`, part of the agent's
    checkpoint, and the same under XLA.
    """

    def __init__(self, time_step_spec, action_spec, network, name=None, generator=None):
        """Creates the policy of `network`, an `ActorCriticNetwork`.

        `generator`: a tf.random.Generator to draw from, None for one of its own.

        Raises:
          TypeError: no TimeStep of specs, or no such network.
          ValueError: specs that are not the network's.
        """
        check_network(time_step_spec, action_spec, network)
        super().__init__(
            time_step_spec,
            action_spec,
            policy_state_spec=network.state_spec,
            info_spec=network.actions.info_spec(),
            clip=False,  # a clipped action has another probability
            automatic_state_reset=False,  # the network does it
            name=name,
        )
        self._network = network
        if generator is None:
            seed = tf.random.uniform([], maxval=tf.int64.max, dtype=tf.int64)
            generator = on_host(lambda: tf.random.Generator.from_seed(seed))
        self._generator = generator

    @property
    def generator(self):
        """The tf.random.Generator that actions are drawn from."""
        return self._generator

    def _step(self, time_step, policy_state):
        (outputs, _), state = self._network(
            time_step.observation, step_type=time_step.step_type, network_state=policy_state
        )
        return outputs, state, self._network.actions.info(outputs)

    def _distribution(self, time_step, policy_state):
        outputs, state, info = self._step(time_step, policy_state)
        return policy_step.PolicyStep(self._network.actions.distribution(outputs), state, info)

    def _action(self, time_step, policy_state, seed=None):
        if seed is not None:
            return super()._action(time_step, policy_state, seed)
        outputs, state, info = self._step(time_step, policy_state)
        seed = self._generator.make_seeds()[:, 0]
        return policy_step.PolicyStep(self._network.actions.sample(outputs, seed), state, info)


def check_network(time_step_spec, action_spec, network):
    """Raises TypeError for what is no TimeStep of specs or no network, ValueError for specs that are not its own."""
    if not isinstance(time_step_spec, ts.TimeStep):
        raise TypeError(f"time_step_spec must be a TimeStep of specs, got {shown(time_step_spec)}")
    if not isinstance(network, ActorCriticNetwork):
        raise TypeError(f"network must be a keras_rtrl.networks.ActorCriticNetwork, got {shown(network)}")
    specs = {
        "time_step_spec.observation": (time_step_spec.observation, network.input_tensor_spec),
        "action_spec": (action_spec, network.actions.spec),
    }
    for name, (spec, own) in specs.items():
        if not _same(spec, own):
            raise ValueError(f"{name} must be what the network was made for, {shown(own)}, got {shown(spec)}")


def _same(spec, own):
    """Whether two nests of specs have the same parts, dtypes and shapes."""
    try:
        spec = tensor_spec.from_spec(spec)  # an environment's may be of arrays
        tf.nest.assert_same_structure(spec, own)
    except (ValueError, TypeError):
        return False
    pairs = zip(tf.nest.flatten(spec), tf.nest.flatten(own), strict=True)
    return all(getattr(a, "dtype", None) == b.dtype and a.shape == b.shape for a, b in pairs)
