"""Two environments as one, whose halves step in turn: one steps while the other waits for its actions."""

import numpy as np
import tensorflow as tf
from tf_agents.environments import py_environment

from keras_rtrl.environments.vector import checked_action


class HalvedEnvironment(py_environment.PyEnvironment):
    """The streams of two batched PyEnvironments, those of the first before those of the second.

    `RolloutDriver` steps the halves in turn, so that acting for one and stepping the other overlap.

    Args:
      halves: two PyEnvironments with `step_async(action)` and `step_wait()`, of equal specs.
    """

    def __init__(self, halves):
        self.halves = tuple(halves)
        first, second = (half.batch_size for half in self.halves)
        self.rows = (slice(0, first), slice(first, first + second))
        self.frames_per_step = getattr(self.halves[0], "frames_per_step", 1)
        super().__init__()

    @property
    def batched(self):
        return True

    @property
    def batch_size(self):
        return self.rows[1].stop

    def observation_spec(self):
        return self.halves[0].observation_spec()

    def action_spec(self):
        return self.halves[0].action_spec()

    def finished_games(self):
        """As VectorEnvironment's."""
        return [
            (total, length, stream + rows.start)
            for half, rows in zip(self.halves, self.rows, strict=True)
            for total, length, stream in half.finished_games()
        ]

    @property
    def worker_pids(self):
        """As WorkerVector's."""
        return [pid for half in self.halves for pid in half.worker_pids]

    # The halves are also stepped directly, so only they know their present time steps.
    @property
    def _current_time_step(self):
        time_steps = [half._current_time_step for half in self.halves]
        return None if time_steps[0] is None else joined(time_steps)

    @_current_time_step.setter
    def _current_time_step(self, _):
        pass

    def _reset(self):
        return joined([half.reset() for half in self.halves])

    def step_async(self, action):
        """Begins a step with action [B, ...] of both halves; `step_wait` must follow."""
        action = checked_action(action, self.action_spec(), self.batch_size)  # of both, before either begins
        for half, rows in zip(self.halves, self.rows, strict=True):
            half.step_async(action[rows])

    def step_wait(self):
        """Ends the step begun with `step_async`."""
        return joined([half.step_wait() for half in self.halves])

    def _step(self, action):
        self.step_async(action)
        return self.step_wait()

    def close(self):
        for half in self.halves:
            half.close()


def joined(parts):
    """Nests of arrays [B1, ...], [B2, ...] as one [B1 + B2, ...]; a single part as it is."""
    return parts[0] if len(parts) == 1 else tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
