"""An environment that waits, as a slow simulator would: benchmarks.scale.waiting:Waiting-v0."""

import time

import gymnasium
import numpy as np

SECONDS = 0.02


class Waiting(gymnasium.Env):
    """Observations of 8 random numbers, 4 actions, episodes of 500 steps, `seconds` a step."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (8,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, seconds=SECONDS):
        self._seconds = seconds

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action):
        time.sleep(self._seconds)
        self._steps += 1
        return self._observation(), float(action == 0), self._steps == 500, False, {}

    def _observation(self):
        return self.np_random.uniform(-1.0, 1.0, 8).astype(np.float32)


gymnasium.register("Waiting-v0", Waiting)
