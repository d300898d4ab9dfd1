"""Two ways to collect and to learn: a simulator beside TensorFlow, or a whole task inside one compiled function."""

import numpy as np
import tensorflow as tf
from tf_agents.environments import tf_environment

from keras_rtrl.drivers import RolloutDriver

LOSSES = ("loss", "policy_loss", "value_loss", "entropy", "gradient_norm")


def make_runner(env, agent, rollout, max_updates):
    """The runner that fits the environment: InGraph for a TFEnvironment, Simulator else."""
    if isinstance(env, tf_environment.TFEnvironment):
        return InGraph(env, agent, rollout, max_updates)
    return Simulator(env, agent, rollout)


class Simulator:
    """Steps a PyEnvironment by a RolloutDriver and trains on each rollout.

    A simulator cannot be saved: after a restore its streams begin new episodes, whose FIRST resets the carry.
    """

    max_updates = 1

    def __init__(self, env, agent, rollout):
        self._env = env
        self._train = tf.function(agent.train, autograph=False)
        self._driver = RolloutDriver(env, agent.collect_policy, rollout, observers=[self._learn])
        self._loss_info = None
        self.state = ()  # nothing of its own to checkpoint

    def _learn(self, rollout):
        self._loss_info = self._train(rollout)

    def run(self, updates, counters):
        """One update. Returns (losses float32 [updates, 5] in the order of LOSSES, returns of games finished)."""
        del updates, counters
        self._driver.run()
        losses = np.array([[self._loss_info.loss, *self._loss_info.extra]], np.float32)
        return losses, [game_return for game_return, _, _ in self._env.finished_games()]


class InGraph:
    """Runs up to `max_updates` rollouts and updates of a TFEnvironment in one compiled function."""

    def __init__(self, env, agent, rollout, max_updates):
        self._env, self._agent = env, agent
        self.max_updates = max_updates
        self._driver = RolloutDriver(env, agent.collect_policy, rollout)
        self._shape = (env.batch_size, rollout)
        self._policy_state = tuple(
            tf.Variable(part, trainable=False, name="policy_state")
            for part in tf.nest.flatten(agent.collect_policy.get_initial_state(env.batch_size))
        )
        self._run = tf.function(self._updates, jit_compile=True, autograph=False)
        env.current_time_step()  # begins the streams, outside the compiled function
        self.state = (*env.variables, *self._policy_state)

    def run(self, updates, counters):
        """As Simulator.run, for any `updates` up to max_updates."""
        losses, rewards, ends = (x.numpy()[:updates] for x in self._run(tf.constant(updates)))
        if not counters.running_returns:
            counters.running_returns = [0.0] * self._shape[0]
        return losses, finished_returns(_in_time(rewards), _in_time(ends), counters.running_returns)

    def _updates(self, updates):
        def body(i, time_step, policy_state, losses, rewards, ends):
            rollout, time_step, policy_state = self._driver.rollout(time_step, policy_state)
            info = self._agent.train(rollout)
            losses = losses.write(i, tf.stack([info.loss, *info.extra]))
            rewards = rewards.write(i, rollout.reward[:, :-1])
            ends = ends.write(i, tf.equal(rollout.next_step_type[:, :-1], 2))
            return i + 1, time_step, policy_state, losses, rewards, ends

        def array(dtype, shape):
            return tf.TensorArray(dtype, self.max_updates, element_shape=shape)

        spec = self._agent.collect_policy.policy_state_spec
        state = tf.nest.pack_sequence_as(spec, [part.value() for part in self._policy_state])
        arrays = (array(tf.float32, [len(LOSSES)]), array(tf.float32, self._shape), array(tf.bool, self._shape))
        _, _, state, *arrays = tf.while_loop(
            lambda i, *_: i < updates,
            body,
            (tf.constant(0), self._env.current_time_step(), state, *arrays),
            parallel_iterations=1,
        )
        for variable, value in zip(self._policy_state, tf.nest.flatten(state), strict=True):
            variable.assign(value)
        return tuple(array.stack() for array in arrays)


def _in_time(x):
    """[K, B, T] to [B, K T]."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def finished_returns(rewards, ends, running):
    """Returns of the episodes that end in rewards [B, T] where ends [B, T], in the order in which they end.

    `running`, a list of B returns of the episodes under way, is brought up to date.
    """
    finished = []
    for stream, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
        total = running[stream] + np.cumsum(reward, dtype=np.float64)
        before = 0.0
        for t in np.flatnonzero(end):
            finished.append((t, stream, float(total[t] - before)))
            before = total[t]
        running[stream] = float(total[-1] - before)
    return [game_return for _, _, game_return in sorted(finished)]
