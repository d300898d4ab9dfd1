"""Atari games on ale-py's vector environment, played by the protocol of Irie et al. (arXiv 2305.19044)."""

import numbers

import numpy as np
from tf_agents.specs import array_spec
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl.environments.registry import unknown_name
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds

_TWO_PLAYER_ONLY = {"combat", "joust", "maze_craze", "warlords"}


def make(name, num_envs, seed, *, training=True, max_frames=108_000):
    """The game "ALE/<Game>-v5" as an `AtariEnvironment`."""
    try:
        from ale_py import roms
    except ImportError as error:
        raise ImportError(f'{name} needs ale-py: pip install "keras_rtrl[atari]".') from error
    games = {
        f"ALE/{rom.title().replace('_', '')}-v5": rom for rom in roms.get_all_rom_ids() if rom not in _TWO_PLAYER_ONLY
    }
    if name not in games:
        raise unknown_name(name, list(games))
    return AtariEnvironment(games[name], num_envs, seed, training, max_frames)


class AtariEnvironment(VectorEnvironment):
    """A batch of one Atari game, observations uint8 [B, 84, 84, 4], actions int64 [B] of the game's minimal set.

    Each action is repeated for 4 frames, the last two of which give one grey image by their maximum; an observation
    is a stack of 4, newest last. A game starts with FIRE, where it has that action, and up to 30 frames of no-op;
    actions are not sticky; rewards are the game's own. A game is truncated (LAST, discount 1) after `max_frames`.

    The game plays on after a lost life, and the step that follows sends FIRE (no-op where there is none) instead of
    the action, or an agent that never fires would wait for ever. In training the lost life is reported as LAST with
    discount 0 and the step after it as FIRST with reward 0 and discount 1; in evaluation neither is. Either way
    `finished_games` has whole games with all their rewards.

    Args:
      rom: ale-py's name of the game, "ms_pacman".
      num_envs: number of streams B.
      seed: a non-negative int or None; each stream's own seed is drawn from it.
      training: whether a lost life ends an episode.
      max_frames: frames after which a game is truncated.
    """

    frames_per_step = 4

    def __init__(self, rom, num_envs, seed=None, training=True, max_frames=108_000):
        if not isinstance(training, bool):
            raise ValueError(f"training must be True or False, got {training!r}.")
        if not isinstance(max_frames, numbers.Integral) or max_frames < 4:
            raise ValueError(f"max_frames must be an int of at least 4, got {max_frames!r}.")
        from ale_py import Action
        from ale_py.vector_env import AtariVectorEnv

        # Lost lives are read off info["lives"]: without life_loss_info `terminated` means a game's end, nothing else.
        self._env = AtariVectorEnv(
            rom,
            num_envs,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=0.0,
            full_action_space=False,
            reward_clipping=False,
            episodic_life=False,
            life_loss_info=False,
        )
        actions = list(self._env.ale.get_action_set())
        self._fire = actions.index(Action.FIRE if Action.FIRE in actions else Action.NOOP)
        self._training = training
        self._seeds = stream_seeds(seed, num_envs)
        super().__init__(
            num_envs,
            array_spec.BoundedArraySpec((84, 84, 4), np.uint8, 0, 255, name="observation"),
            array_spec.BoundedArraySpec((), np.int64, 0, len(actions) - 1, name="action"),
        )

    def _reset(self):
        frames, info = self._env.reset(seed=self._seeds)
        self._seeds = None  # later resets go on from where the generators stand
        self._forget_games()
        self._lives = info["lives"]
        self._life_lost = np.zeros(self._num_envs, bool)
        self._game_over = np.zeros(self._num_envs, bool)
        # An episode that ended in the very step reported as its FIRST is closed by the next step: 1 + its discount.
        self._owed = np.zeros(self._num_envs, np.float32)
        return self._first(_channels_last(frames))

    def _step(self, action):
        before = self._current_time_step
        first = before.step_type == StepType.LAST
        action = np.where(first | self._life_lost, self._fire, self._checked(action))
        frames, reward, terminated, truncated, info = self._env.step(action)
        self._count(reward, ~self._game_over, terminated | truncated)
        self._game_over = terminated | truncated
        self._life_lost = (info["lives"] < self._lives) & (info["lives"] > 0) & ~self._game_over
        self._lives = info["lives"]

        died = terminated | (self._life_lost if self._training else False)
        ended = died | truncated
        discount = np.where(died, 0.0, 1.0).astype(np.float32)
        observation = _channels_last(frames)
        owed = self._owed > 0
        if owed.any():
            observation[owed] = before.observation[owed]
            discount[owed] = self._owed[owed] - 1.0
        self._owed = np.where(first & ended, 1.0 + discount, 0.0).astype(np.float32)
        step_type = np.where(first, StepType.FIRST, np.where(ended | owed, StepType.LAST, StepType.MID))
        return TimeStep(
            step_type.astype(np.int32),
            np.where(first, 0, reward).astype(np.float32),
            np.where(first, 1.0, discount).astype(np.float32),
            observation,
        )

    def close(self):
        self._env.close()


def _channels_last(frames):
    observation = np.empty((*frames.shape[:1], *frames.shape[2:], frames.shape[1]), np.uint8)
    for i in range(frames.shape[1]):  # three times as fast as copying the transposed view at once
        observation[..., i] = frames[:, i]
    return observation
