"""A game in which a program fails at the 200th step."""

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Failing(CartPoleEnv):
    steps = 0

    def step(self, action):
        Failing.steps += 1
        return 1 // 0 if Failing.steps > 200 else super().step(action)


gymnasium.register("Failing-v0", Failing)
