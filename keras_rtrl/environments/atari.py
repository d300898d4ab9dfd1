"""Atari games on ale-py's vector environment, played by the protocol of Irie et al. (arXiv 2305.19044)."""

import functools

import numpy as np
from tf_agents.specs import array_spec
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl._checks import flag, whole_number
from keras_rtrl.environments.registry import needing, unknown_name
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds

STREAM_BYTES = 2**20  # at least
_TWO_PLAYER_ONLY = {"combat", "joust", "maze_craze", "warlords"}

# (random, human): mean returns of games of at most 108,000 frames that begin with up to 30 no-ops, as in DQN Zoo
# (google-deepmind/dqn_zoo). Other tables have 0 for random play of Video Pinball.
SCORES = {
    "ALE/Alien-v5": (227.8, 7127.7),
    "ALE/Amidar-v5": (5.8, 1719.5),
    "ALE/Assault-v5": (222.4, 742.0),
    "ALE/Asterix-v5": (210.0, 8503.3),
    "ALE/Asteroids-v5": (719.1, 47388.7),
    "ALE/Atlantis-v5": (12850.0, 29028.1),
    "ALE/BankHeist-v5": (14.2, 753.1),
    "ALE/BattleZone-v5": (2360.0, 37187.5),
    "ALE/BeamRider-v5": (363.9, 16926.5),
    "ALE/Berzerk-v5": (123.7, 2630.4),
    "ALE/Bowling-v5": (23.1, 160.7),
    "ALE/Boxing-v5": (0.1, 12.1),
    "ALE/Breakout-v5": (1.7, 30.5),
    "ALE/Centipede-v5": (2090.9, 12017.0),
    "ALE/ChopperCommand-v5": (811.0, 7387.8),
    "ALE/CrazyClimber-v5": (10780.5, 35829.4),
    "ALE/Defender-v5": (2874.5, 18688.9),
    "ALE/DemonAttack-v5": (152.1, 1971.0),
    "ALE/DoubleDunk-v5": (-18.6, -16.4),
    "ALE/Enduro-v5": (0.0, 860.5),
    "ALE/FishingDerby-v5": (-91.7, -38.7),
    "ALE/Freeway-v5": (0.0, 29.6),
    "ALE/Frostbite-v5": (65.2, 4334.7),
    "ALE/Gopher-v5": (257.6, 2412.5),
    "ALE/Gravitar-v5": (173.0, 3351.4),
    "ALE/Hero-v5": (1027.0, 30826.4),
    "ALE/IceHockey-v5": (-11.2, 0.9),
    "ALE/Jamesbond-v5": (29.0, 302.8),
    "ALE/Kangaroo-v5": (52.0, 3035.0),
    "ALE/Krull-v5": (1598.0, 2665.5),
    "ALE/KungFuMaster-v5": (258.5, 22736.3),
    "ALE/MontezumaRevenge-v5": (0.0, 4753.3),
    "ALE/MsPacman-v5": (307.3, 6951.6),
    "ALE/NameThisGame-v5": (2292.3, 8049.0),
    "ALE/Phoenix-v5": (761.4, 7242.6),
    "ALE/Pitfall-v5": (-229.4, 6463.7),
    "ALE/Pong-v5": (-20.7, 14.6),
    "ALE/PrivateEye-v5": (24.9, 69571.3),
    "ALE/Qbert-v5": (163.9, 13455.0),
    "ALE/Riverraid-v5": (1338.5, 17118.0),
    "ALE/RoadRunner-v5": (11.5, 7845.0),
    "ALE/Robotank-v5": (2.2, 11.9),
    "ALE/Seaquest-v5": (68.4, 42054.7),
    "ALE/Skiing-v5": (-17098.1, -4336.9),
    "ALE/Solaris-v5": (1236.3, 12326.7),
    "ALE/SpaceInvaders-v5": (148.0, 1668.7),
    "ALE/StarGunner-v5": (664.0, 10250.0),
    "ALE/Surround-v5": (-10.0, 6.5),
    "ALE/Tennis-v5": (-23.8, -8.3),
    "ALE/TimePilot-v5": (3568.0, 5229.2),
    "ALE/Tutankham-v5": (11.4, 167.6),
    "ALE/UpNDown-v5": (533.4, 11693.2),
    "ALE/Venture-v5": (0.0, 1187.5),
    "ALE/VideoPinball-v5": (16256.9, 17667.9),
    "ALE/WizardOfWor-v5": (563.5, 4756.5),
    "ALE/YarsRevenge-v5": (3092.9, 54576.9),
    "ALE/Zaxxon-v5": (32.5, 9173.3),
}
ATARI_57 = tuple(SCORES)


def make(name, num_envs, seed, *, training=True, max_frames=108_000, sticky_actions=False, stack_num=4):
    """The game "ALE/<Game>-v5" as an `AtariEnvironment`."""
    with needing(name, ["ale_py"], 'ale-py: pip install "keras_rtrl[atari]".'):
        from ale_py import roms
    games = {
        f"ALE/{rom.title().replace('_', '')}-v5": rom for rom in roms.get_all_rom_ids() if rom not in _TWO_PLAYER_ONLY
    }
    if name not in games:
        raise unknown_name(name, list(games))
    return AtariEnvironment(
        games[name],
        num_envs,
        seed=seed,
        training=training,
        max_frames=max_frames,
        sticky_actions=sticky_actions,
        stack_num=stack_num,
    )


class AtariEnvironment(VectorEnvironment):
    """A batch of one Atari game: observations uint8 [B, 84, 84, stack_num], actions int64 [B] of its minimal set.

    Each action is repeated for 4 frames. The maximum of the last two frames gives one grey image; an observation is a
    stack of the last `stack_num` images, newest last. A game starts with FIRE, if it has that action, and up to 30
    frames of no-op.
    Rewards are those of the game. A game is truncated (LAST, discount 1) after `max_frames`.

    The game plays on after a lost life. The next step sends FIRE (no-op if the game has none) instead of the action;
    otherwise an agent that never fires would wait without end. In training the lost life is reported as LAST with
    discount 0, and the step after it as FIRST with reward 0 and discount 1. In evaluation neither is reported.
    `finished_games` always has whole games with all their rewards.

    Args:
      rom: ale-py's name of the game, "ms_pacman".
      num_envs: number of streams B.
      seed: a non-negative int or None; the seed of each stream is drawn from it.
      training: whether a lost life ends an episode.
      max_frames: frames after which a game is truncated.
      sticky_actions: whether each frame repeats the last frame's action with probability 0.25 (Machado et al. 2018).
      stack_num: images of an observation, 1 to 100. Mnih et al. 2015 take 4; a recurrent network can do with 1.
    """

    frames_per_step = 4

    def __init__(
        self,
        rom: str,
        num_envs: int,
        *,
        seed: int | np.ndarray | None = None,
        training: bool = True,
        max_frames: int = 108_000,
        sticky_actions: bool = False,
        stack_num: int = 4,
    ):
        training, sticky_actions = flag("training", training), flag("sticky_actions", sticky_actions)
        max_frames = whole_number("max_frames", max_frames, low=4, high=2**31 - 1)  # ALE counts them in an int
        stack_num = whole_number("stack_num", stack_num, high=100)
        from ale_py import Action
        from ale_py.vector_env import AtariVectorEnv

        # Lost lives are read off info["lives"]: without life_loss_info `terminated` means a game's end, nothing else.
        self._simulator = functools.partial(
            AtariVectorEnv,
            rom,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=0.25 if sticky_actions else 0.0,
            full_action_space=False,
            reward_clipping=False,
            episodic_life=False,
            life_loss_info=False,
        )
        self._env = self._simulator(num_envs=num_envs, stack_num=stack_num)
        self._shown = self._picture = None
        actions = list(self._env.ale.get_action_set())
        self._fire = actions.index(Action.FIRE if Action.FIRE in actions else Action.NOOP)
        self._training = training
        self._seeds = stream_seeds(seed, num_envs)
        super().__init__(
            num_envs,
            array_spec.BoundedArraySpec((84, 84, stack_num), np.uint8, 0, 255, name="observation"),
            array_spec.BoundedArraySpec((), np.int64, 0, len(actions) - 1, name="action"),
        )

    def watch(self):
        """From the first reset on, which must come after, `picture` has the first stream's screen."""
        self._shown = self._simulator(num_envs=1, img_height=210, img_width=160, grayscale=False, stack_num=1)

    def picture(self):
        """The first stream's screen as a person sees it, RGB uint8 [210, 160, 3]: that of a twin of its simulator."""
        return self._picture

    def _reset(self):
        frames, info = self._env.reset(seed=self._seeds)
        if self._shown is not None:
            self._picture = self._shown.reset(seed=None if self._seeds is None else self._seeds[:1])[0][0, -1]
        self._seeds = None  # later resets continue the generators
        self._forget_games()
        self._lives = info["lives"]
        self._life_lost = np.zeros(self._num_envs, bool)
        self._game_over = np.zeros(self._num_envs, bool)
        # An episode that ended in the very step reported as its FIRST is closed by the next step, with its discount.
        self._ended_at_first = np.zeros(self._num_envs, bool)
        self._end_discount = np.ones(self._num_envs, np.float32)
        return self._first(_channels_last(frames))

    def _step(self, action):
        before = self._current_time_step
        first = before.step_type == StepType.LAST
        action = np.where(first | self._life_lost, self._fire, self._checked(action))
        frames, reward, terminated, truncated, info = self._env.step(action)
        if self._shown is not None:
            self._picture = self._shown.step(action[:1])[0][0, -1]
        self._count(reward, ~self._game_over, terminated | truncated)
        self._game_over = terminated | truncated
        self._life_lost = (info["lives"] < self._lives) & (info["lives"] > 0) & ~self._game_over
        self._lives = info["lives"]

        died = terminated | (self._life_lost if self._training else False)
        ended = died | truncated
        discount = np.where(died, 0.0, 1.0).astype(np.float32)
        observation = _channels_last(frames)
        late = self._ended_at_first
        if late.any():
            observation[late] = before.observation[late]
            discount[late] = self._end_discount[late]
        self._ended_at_first, self._end_discount = first & ended, discount
        step_type = np.where(first, StepType.FIRST, np.where(ended | late, StepType.LAST, StepType.MID))
        return TimeStep(
            step_type.astype(np.int32),
            np.where(first, 0, reward).astype(np.float32),
            np.where(first, 1.0, discount).astype(np.float32),
            observation,
        )

    def close(self):
        self._env.close()
        if self._shown is not None:
            self._shown.close()


def _channels_last(frames):
    observation = np.empty((*frames.shape[:1], *frames.shape[2:], frames.shape[1]), np.uint8)
    for i in range(frames.shape[1]):  # three times as fast as copying the transposed view at once
        observation[..., i] = frames[:, i]
    return observation
