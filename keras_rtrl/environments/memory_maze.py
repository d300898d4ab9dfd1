"""MiniGrid's memory tasks inside TensorFlow's graph (Chevalier-Boisvert et al., arXiv 2306.13831).

Nothing but the agent moves in such a maze, so a maze has few states: the agent's cell and direction. What each state
shows, and where each action leads, is read off MiniGrid's own environment when the task is made. A step looks it up.
Only mazes and starts are drawn otherwise: each maze is as likely as another, and so is each start in it.
"""

import itertools

import gymnasium
import numpy as np
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl.environments.in_graph import InGraphTask

_GOES_ON, _RIGHT, _WRONG = range(3)
_EAST = 0


class MemoryMaze(InGraphTask):
    """`num_envs` streams of a memory task as a TFEnvironment that runs under jit_compile.

    The state of a stream is the number of its maze's state, over all mazes, and the steps since the episode began.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
      env: MiniGrid's environment of the task, with the observations that are wanted.
    """

    def __init__(self, num_envs, seed, env):
        tables = _Tables(env)
        self._shown, self._after = tf.constant(tables.shown), tf.constant(tables.after)
        self._ends, self._starts = tf.constant(tables.ends), tf.constant(tables.starts)
        self._limit = limit = env.unwrapped.max_steps
        self._rewards = tf.constant([1 - 0.9 * (time / limit) for time in range(limit + 1)], tf.float32)
        super().__init__(
            tensor_spec.BoundedTensorSpec(self._shown.shape[1:], tf.float32, 0.0, 1.0, name="observation"),
            tensor_spec.BoundedTensorSpec((), tf.int64, 0, self._after.shape[1] - 1, name="action"),
            num_envs,
            seed,
            state=(tf.zeros([num_envs], tf.int32), tf.zeros([num_envs], tf.int32)),
        )

    def _advance(self, restart, action, state, words):
        at, time = state
        maze, start = tf.unstack(tf.bitwise.bitwise_and(words(2), 2**31 - 1), axis=1)
        starts = tf.gather(self._starts, maze % self._starts.shape[0])
        number = tf.reduce_sum(tf.cast(starts >= 0, tf.int32), axis=1)
        moved = tf.gather_nd(self._after, tf.stack([at, action], axis=1))
        at = tf.where(restart, tf.gather(starts, start % number, axis=1, batch_dims=1), moved)
        time = tf.where(restart, 0, time + 1)
        end = tf.where(restart, _GOES_ON, tf.gather(self._ends, at))
        reward = tf.where(tf.equal(end, _RIGHT), tf.gather(self._rewards, time), 0.0)
        observation = tf.cast(tf.gather(self._shown, at), tf.float32)
        return (at, time), observation, reward, end > _GOES_ON, time >= self._limit


class _Tables:
    """What MiniGrid's environment does in each state of each maze.

    Attributes:
      shown: uint8 [states, features], the observations.
      after: int32 [states, actions], the next state.
      ends: int32 [states], whether and how an episode ends at a state.
      starts: int32 [mazes, most starts], the states that an episode may begin in, then -1.
    """

    def __init__(self, env):
        self._env, self._task = env, env.unwrapped
        self._actions = env.action_space.n
        self.shown, self.after, self.ends, starts = [], [], [], []
        for maze in self._mazes():
            starts.append(self._explore(maze))
        most = max(map(len, starts))
        self.starts = np.array([row + [-1] * (most - len(row)) for row in starts], np.int32)
        self.shown, self.after = np.array(self.shown, np.uint8), np.array(self.after, np.int32)
        self.ends = np.array(self.ends, np.int32)

    def _mazes(self):
        """Puts each maze there is into the environment, and yields the end of its hallway."""
        task, found = self._task, set()
        lengths = task.width - 6 if task.random_length else 1
        for seed in itertools.count():
            self._env.reset(seed=seed)
            maze = (task.success_pos, task.grid.encode().tobytes())
            if maze not in found:
                found.add(maze)
                yield task.success_pos[0] - 1
            if len(found) == 4 * lengths:  # two objects to remember, two ways for them to lie at the end
                return

    def _explore(self, hallway_end):
        """Adds the states of the maze; returns those that an episode may begin in."""
        poses = [((x, self._task.height // 2), _EAST) for x in range(1, hallway_end + 1)]
        numbers = {pose: len(self.ends) + i for i, pose in enumerate(poses)}
        starts = list(numbers.values())
        for pose in poses:  # grows on the way
            turned = (pose[0], (pose[1] + 1) % 4)
            _, shown, end = self._tried(turned, self._task.actions.left)  # back to the pose
            self.shown.append(shown)
            self.ends.append(end)
            after = []
            for action in range(self._actions):
                new = pose if end else self._tried(pose, action)[0]
                if new not in numbers:
                    numbers[new] = starts[0] + len(poses)
                    poses.append(new)
                after.append(numbers[new])
            self.after.append(after)
        return starts

    def _tried(self, pose, action):
        """The pose after an action, what it shows, and whether the episode ends."""
        task = self._task
        task.agent_pos, task.agent_dir, task.step_count = np.array(pose[0]), pose[1], 0
        observation, reward, terminated, _, _ = self._env.step(action)
        shown = gymnasium.spaces.flatten(self._env.observation_space, observation)
        end = (_RIGHT if reward > 0 else _WRONG) if terminated else _GOES_ON
        return (tuple(int(i) for i in task.agent_pos), int(task.agent_dir)), shown, end
