"""The R2AC agent: V-trace actor-critic with a recurrent core trained by RTRL (Irie et al., ICLR 2024)."""

import collections

import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl.agents.base import RolloutAgent
from keras_rtrl.agents.experience import is_finite, only_if, played
from keras_rtrl.agents.r2ac import losses
from keras_rtrl.agents.r2ac.config import R2ACConfig
from keras_rtrl.distributed.replicas import all_sum
from keras_rtrl.engine import Carry
from keras_rtrl.networks.normalizer import clipped

R2ACExtra = collections.namedtuple("R2ACExtra", ["policy_loss", "value_loss", "entropy", "gradient_norm"])


class R2ACAgent(RolloutAgent):
    """Advantage actor-critic over an endless rollout of B streams.

        loss = - sum log pi(a_t) A_t + value_pred_loss_coef 1/2 sum (v_t - V_t)^2 - entropy_regularization sum H(pi_t)

    summed over streams and time, with V-trace targets v and advantages A. The agent owns the learner's carry (state,
    and traces under gradient="rtrl") of each stream: row b of every batch must be stream b, and each rollout must
    begin with the frame the last one ended with. The carry is stale by one update at each rollout's start, as in any
    online RTRL.
    """

    config_class = R2ACConfig
    extra_class = R2ACExtra

    def _trained_variables(self):
        frozen = set() if self._config.train_core else {v.ref() for v in self._network.core_variables}
        return [v for v in self._network.trainable_variables if v.ref() not in frozen]

    def _unroll(self, experience, carry):
        """Core outputs [B, T, W] of frames 0..T-1 and [B, 1, W] of frame T, carry after frame T-1."""
        network = self._network
        reset = tf.equal(experience.step_type, ts.StepType.FIRST)
        features = network.encode(experience.observation, reset)
        y, carry = network.core(features[:, :-1], reset[:, :-1], carry)
        carry = tf.nest.map_structure(tf.stop_gradient, carry)
        last_y, _ = network.core(tf.stop_gradient(features[:, -1:]), reset[:, -1:], network.state_of(carry))
        return y, last_y, carry

    def _loss_of(self, experience, y, last_y):
        """(loss, LossTerms) of a rollout, from what `_unroll` gives."""
        config, actions = self._config, self._network.actions
        outputs, values = self._network.heads(y)
        last_value = self._network.heads(last_y)[1][:, 0]
        step, boundary = played(experience._replace(observation=()))
        reward, discount = tf.cast(step.reward, values.dtype), tf.cast(step.discount, values.dtype)
        if config.reward_clipping is not None:
            reward = clipped(reward, -config.reward_clipping, config.reward_clipping)
        log_pi = actions.log_probability(outputs, step.action)
        log_mu = actions.log_probability(actions.from_info(step.policy_info), step.action)
        targets = losses.vtrace(log_pi - log_mu, config.gamma * discount, reward, values, last_value, boundary)
        terms = losses.r2ac_loss(log_pi, actions.entropy(outputs), values, targets, boundary)
        total = terms.policy_loss + config.value_pred_loss_coef * terms.value_loss
        return total - config.entropy_regularization * terms.entropy, terms

    def core_cotangents(self, experience: trajectory.Trajectory, carry: tuple[Carry, ...]) -> tf.Tensor:
        y, last_y, _ = self._unroll(experience, carry)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(y)
            total, _ = self._loss_of(experience, y, last_y)
        return tape.gradient(total, y)

    def _gradients(self, experience):
        """LossInfo, clipped gradients and this replica's carry after frame T-1; assigns nothing."""
        config = self._config
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._trained)
            y, last_y, carry = self._unroll(experience, self._by_stream.values())
            total, terms = self._loss_of(experience, y, last_y)
        gradients = tape.gradient(total, self._trained, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        total += self._zero_if_finite(carry, total.dtype)
        gradients, total, terms = all_sum((gradients, total, terms))
        norm = tf.linalg.global_norm(gradients)
        if config.gradient_clipping is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, config.gradient_clipping, use_norm=norm)
        return tf_agent.LossInfo(total, R2ACExtra(*terms, gradient_norm=norm)), gradients, carry

    def _train(self, experience, weights=None):
        experience = self._checked(experience, weights)
        streams = self._streams
        rows = streams.split(experience)
        loss_info, gradients, carry = streams.run(self._gradients, rows)
        loss_info = streams.one(loss_info)
        # MirroredStrategy applies gradients outside conditions only: it is around the replicas' functions
        only_if(is_finite(loss_info), lambda: streams.run(self._apply, rows.observation, gradients, carry))
        self.train_step_counter.assign_add(1)
        return loss_info

    def _apply(self, observation, gradients, carry):
        self._optimizer.apply_gradients(zip(gradients, self._trained, strict=True), skip_gradients_aggregation=True)
        self._by_stream.assign(carry)
        self._network.update_normalizer(tf.nest.map_structure(lambda x: x[:, :-1], observation))

    def _loss(self, experience, weights=None, training=False):
        del training
        experience = self._checked(experience, weights)
        info = self._streams.run(lambda rows: self._gradients(rows)[0], self._streams.split(experience))
        return self._streams.one(info)
