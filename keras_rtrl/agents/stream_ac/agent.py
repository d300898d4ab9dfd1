"""Streaming actor-critic AC(lambda) on RTRL gradients (Elsayed, Vasan and Mahmood 2024)."""

import collections

import tensorflow as tf

from keras_rtrl.agents.obgd import ObGD
from keras_rtrl.agents.stream_ac.config import StreamACConfig
from keras_rtrl.agents.streaming import StreamingAgent

StreamACExtra = collections.namedtuple("StreamACExtra", ["value", "td_error", "entropy"])


class StreamACAgent(StreamingAgent):
    """Actor-critic AC(lambda) on one stream: no replay, no batch, an update at every step.

        delta = r + gamma v(s') - v(s)
        z_v = k gamma lambda z_v + grad v(s)
        z_pi = k gamma lambda z_pi + grad (log pi(a) + entropy_regularization sign(delta) H(pi))
        parameters += learning rate * delta (value_pred_loss_coef z_v + z_pi)

    with both gradients from one set of RTRL traces. Rewards r are scaled as the config says, observations normalised
    if the network does so. `extra`: value v(s), TD error delta and the policy's entropy; the loss is delta^2 / 2.
    """

    extra_class = StreamACExtra
    config_class = StreamACConfig
    objectives = ("critic", "actor")

    def _take_in(self, observation, reward, boundary):
        super()._take_in(observation, reward, boundary)
        if self._reward_scaler is not None:
            self._reward_scaler.update(reward[:, tf.newaxis], boundary[:, tf.newaxis])

    def _scaled(self, reward):
        return reward if self._reward_scaler is None else self._reward_scaler(reward)

    def _objectives(self, forward, action, td_error):
        actions = self._network.actions
        score = tf.reduce_sum(actions.log_probability(forward.outputs, action))
        entropy = tf.reduce_sum(actions.entropy(forward.outputs))
        return [forward.value, score + self._config.entropy_regularization * tf.sign(td_error) * entropy]

    def _extra(self, forward, td_error):
        return StreamACExtra(forward.value, td_error, tf.reduce_sum(self._network.actions.entropy(forward.outputs)))

    def _direction(self, td_error, traces):
        critic, actor = traces
        for_critic, for_actor = self._config.value_pred_loss_coef * td_error, td_error
        if isinstance(self._optimizer, ObGD):
            for_critic *= self._optimizer.bound(td_error, critic, self._optimizer.critic_kappa)
            for_actor *= self._optimizer.bound(td_error, actor, self._optimizer.actor_kappa)
        return [-for_critic * v - for_actor * pi for v, pi in zip(critic, actor, strict=True)]
