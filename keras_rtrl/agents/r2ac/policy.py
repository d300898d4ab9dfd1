"""The acting side of R2AC."""

import tensorflow as tf
import tensorflow_probability as tfp
from tf_agents.policies import tf_policy
from tf_agents.trajectories import policy_step


class R2ACPolicy(tf_policy.TFPolicy):
    """Samples actions from an actor-critic network.

    Its state is the network's state (no traces); its info is {"logits": float32 [A]}, the behaviour policy. Actions
    are drawn from a generator of its own, a variable: seeded from `tf.random.set_seed`, part of the agent's
    checkpoint, and the same under XLA.
    """

    def __init__(self, time_step_spec, action_spec, network, name=None):
        """Creates the policy of `network`, an `ActorCriticNetwork`."""
        super().__init__(
            time_step_spec,
            action_spec,
            policy_state_spec=network.state_spec,
            info_spec={"logits": tf.TensorSpec([network.num_actions], tf.float32, name="logits")},
            automatic_state_reset=False,  # the network does it
            name=name,
        )
        self._network = network
        seed = tf.random.uniform([], maxval=tf.int64.max, dtype=tf.int64)
        self._generator = tf.random.Generator.from_seed(seed)

    def _distribution(self, time_step, policy_state):
        (logits, _), state = self._network(
            time_step.observation, step_type=time_step.step_type, network_state=policy_state
        )
        actions = tfp.distributions.Categorical(logits, dtype=self.action_spec.dtype)
        return policy_step.PolicyStep(actions, state, {"logits": logits})

    def _action(self, time_step, policy_state, seed=None):
        if seed is not None:
            return super()._action(time_step, policy_state, seed)
        step = self._distribution(time_step, policy_state)
        logits = step.info["logits"]
        # Gumbel-max on Philox bits, which are the same eager and compiled: TensorFlow's other samplers are not
        seed = self._generator.make_seeds()[:, 0]
        bits = tf.random.stateless_uniform(tf.shape(logits), seed, None, None, tf.uint32, alg="philox")
        uniform = (tf.cast(tf.bitwise.right_shift(bits, 9), tf.float32) + 0.5) / 2.0**23
        action = tf.argmax(logits - tf.math.log(-tf.math.log(uniform)), axis=-1, output_type=self.action_spec.dtype)
        return step._replace(action=action)
