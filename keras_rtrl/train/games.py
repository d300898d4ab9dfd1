"""Whole games, played greedily or otherwise."""

import numpy as np
import tensorflow as tf
from tf_agents.environments import tf_environment

from keras_rtrl.train.export import flat


def whole_games(env, policy, quota, max_steps, recorder=None, choose=None):
    """Plays until each stream i has played `quota[i]` games.

    A game that goes on after `max_steps` agent steps is cut off and counts as it is. Its stream waits for the others to
    play theirs or to be cut off, then all begin new games.

    `choose` makes the action from what the policy gives; None takes its own, the greedy one. `recorder.add` gets what
    each step of the first stream's first game shows.

    Yields after each step the games so far, a list of (return, length in agent steps, whether it was cut off) a
    stream, always the same list.
    """
    played = [[] for _ in quota]
    while any(len(games) < wanted for games, wanted in zip(played, quota, strict=True)):
        waiting = set()
        for observation, finished, returns, lengths in _play(env, policy, choose or _greedy):
            if recorder and not played[0]:
                recorder.add(observation)
            over = [(*game, False) for game in finished]
            over += [(float(returns[i]), int(lengths[i]), int(i), True) for i in np.flatnonzero(lengths >= max_steps)]
            for game_return, length, stream, cut in over:
                if stream not in waiting:
                    played[stream].append((game_return, length, cut))
                    waiting |= {stream} if cut else set()
            yield played
            if all(i in waiting or len(played[i]) >= wanted for i, wanted in enumerate(quota)):
                break


def _greedy(outputs):
    return outputs["action"]


def _play(env, policy, choose):
    """Begins new games. After each step, without end, yields the observation array, the finished games as (return,
    length, stream), and the returns and lengths [B] so far of the others."""
    in_graph = isinstance(env, tf_environment.TFEnvironment)
    step = tf.function(env.step, autograph=False) if in_graph else env.step
    time_step = env.reset()
    state = policy.initial_state(batch_size=tf.constant(env.batch_size))
    returns, lengths = np.zeros(env.batch_size), np.zeros(env.batch_size, int)
    while True:
        inputs = {name: tf.convert_to_tensor(value) for name, value in flat(time_step.observation).items()}
        outputs = policy.action(step_type=tf.convert_to_tensor(time_step.step_type), **inputs, **state)
        state = {name: value for name, value in outputs.items() if name.startswith("state_")}
        action = choose(outputs)
        time_step = step(action if in_graph else action.numpy())
        step_type = np.asarray(time_step.step_type)
        returns += np.asarray(time_step.reward)
        lengths += step_type != 0
        if in_graph:  # an episode is a game
            finished = [(float(returns[i]), int(lengths[i]), int(i)) for i in np.flatnonzero(step_type == 2)]
        else:
            finished = env.finished_games()
        for _, _, stream in finished:
            returns[stream] = lengths[stream] = 0
        yield np.asarray(seen(time_step.observation)), finished, returns, lengths


def seen(observation):
    """The environment's own observation, or of one of parts the image."""
    observation = observation["observation"]
    return observation.get("rgb", observation) if isinstance(observation, dict) else observation
