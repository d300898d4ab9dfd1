import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tf_agents.drivers import dynamic_step_driver
from tf_agents.environments import tf_py_environment, utils
from tf_agents.policies import random_tf_policy

from keras_rtrl import environments
from keras_rtrl.environments.gymnasium_vector import GymnasiumVector
from keras_rtrl.environments.vector import stream_seeds

FIRST, MID, LAST = 0, 1, 2


def test_streams_are_gymnasium_environments_of_their_own():
    """Every stream, over several episodes, equals a plain environment with the stream's seed; ends fall apart."""
    streams, steps = 4, 150
    env = environments.make("CartPole-v1", num_envs=streams, seed=5)
    actions = np.random.default_rng(0).integers(0, 2, (steps, streams))
    time_steps = [env.reset()] + [env.step(action) for action in actions]
    games = env.finished_games()
    assert env.finished_games() == []
    ends = []
    for stream, seed in enumerate(stream_seeds(5, streams).tolist()):
        plain, finished, done = gymnasium.make("CartPole-v1"), [], True
        length = 0
        for t, time_step in enumerate(time_steps):
            if done:
                observation, _ = plain.reset(seed=seed if t == 0 else None)
                reward, terminated, done, expected, length = 0.0, False, False, FIRST, 0
            else:
                observation, reward, terminated, _, _ = plain.step(actions[t - 1, stream])
                done, expected, length = terminated, LAST if terminated else MID, length + 1
                if done:
                    finished.append((float(length), length, stream))
            np.testing.assert_array_equal(time_step.observation[stream], observation)
            assert time_step.step_type[stream] == expected
            assert time_step.reward[stream] == reward
            assert time_step.discount[stream] == (0.0 if terminated else 1.0)
        assert len(finished) >= 3
        assert finished == [game for game in games if game[2] == stream]
        ends.append([length for _, length, _ in finished])
    assert len(set(map(tuple, ends))) == streams


def test_truncation_is_not_termination():
    env = environments.make("CartPole-v1", num_envs=2, seed=0, max_episode_steps=5)
    env.reset()
    time_steps = [env.step(np.array([t % 2, t % 2])) for t in range(6)]
    assert [t.step_type.tolist() for t in time_steps[4:]] == [[LAST] * 2, [FIRST] * 2]
    assert time_steps[4].discount.tolist() == [1.0, 1.0]

    env = environments.make("CartPole-v1", num_envs=1, seed=0)
    time_step = env.reset()
    while not time_step.is_last():
        time_step = env.step(np.array([0]))
    assert time_step.discount.tolist() == [0.0]


def test_seeds():
    def first(seed):
        return environments.make("CartPole-v1", num_envs=4, seed=seed).reset().observation

    np.testing.assert_array_equal(first(0), first(0))
    assert len(np.unique(np.concatenate([first(0), first(1), first(2)]), axis=0)) == 12
    assert (first(None) != first(None)).all()


def test_box_actions_and_float64():
    env = environments.make("Pendulum-v1", num_envs=2, seed=0)
    spec = env.action_spec()
    assert (spec.shape, spec.dtype, spec.minimum.tolist(), spec.maximum.tolist()) == ((1,), np.float32, [-2], [2])
    assert env.reset().observation.dtype == np.float32
    assert env.step(np.array([[1.0], [-1.0]], np.float32)).reward.shape == (2,)
    assert env.frames_per_step == 1


class Shifted(gymnasium.Env):
    """Discrete spaces that do not start at 0."""

    observation_space = gymnasium.spaces.Discrete(5, start=-2)
    action_space = gymnasium.spaces.Discrete(3, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.int64(-2), {}

    def step(self, action):
        return np.int64(action - 1), float(action), False, False, {}


def test_discrete_spaces_start_at_zero():
    env = GymnasiumVector(SyncVectorEnv([Shifted, Shifted]))
    np.testing.assert_array_equal(env.reset().observation, np.eye(5)[[0, 0]])
    time_step = env.step(np.array([0, 2]))
    assert time_step.reward.tolist() == [1.0, 3.0]
    np.testing.assert_array_equal(time_step.observation, np.eye(5)[[2, 4]])
    assert (env.action_spec().minimum, env.action_spec().maximum) == (0, 2)


class Recorder(gymnasium.Env):
    """Spaces given by the test; keeps the actions it gets."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = gymnasium.spaces.Discrete(2) if observation_space is None else observation_space
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.actions.append(np.array(action))
        return self.observation_space.sample(), 0.0, False, False, {}


def recorded(action_space, streams=2):
    envs = [Recorder(action_space) for _ in range(streams)]
    vector = GymnasiumVector(SyncVectorEnv([lambda env=env: env for env in envs]))
    vector.reset()
    return vector, envs


def test_vectors_of_choices():
    env, (first, second) = recorded(gymnasium.spaces.MultiDiscrete([3, 5], start=[1, -2]))
    spec = env.action_spec()
    assert (spec.shape, spec.dtype, spec.minimum.tolist(), spec.maximum.tolist()) == ((2,), np.int64, [0, 0], [2, 4])
    env.step(np.array([[0, 4], [2, 0]]))
    assert [first.actions[0].tolist(), second.actions[0].tolist()] == [[1, 2], [3, -2]]
    for action in ([[3, 0], [0, 0]], [[0, 0], [0, -1]]):
        with pytest.raises(ValueError, match=r"action must lie in \[0 0\]\.\.\[2 4\]"):
            env.step(np.array(action))
    with pytest.raises(ValueError, match=r"action must have shape \(2, 2\), got \(2,\)"):
        env.step(np.array([0, 0]))


def test_floats_are_clipped():
    low, high = np.array([-1, -np.inf, 0], np.float32), np.array([2, np.inf, 0.5], np.float32)
    env, (first, second) = recorded(gymnasium.spaces.Box(low, high))
    actions = np.array([[-3, -30, -1], [1, 30, 0.25]], np.float32)
    kept = actions.copy()
    env.step(actions)
    assert [first.actions[0].tolist(), second.actions[0].tolist()] == [[-1, -30, 0], [1, 30, 0.25]]
    np.testing.assert_array_equal(actions, kept)
    with pytest.raises(ValueError, match=r"action must be finite numbers, got .*nan"):
        env.step(np.array([[0, 0, 0], [0, np.nan, 0]], np.float32))


Choice = gymnasium.spaces.Discrete


@pytest.mark.parametrize(
    ("space", "width", "ones"),
    [
        (Choice(3), 3, 1),
        (Choice(3, start=-1), 3, 1),
        (gymnasium.spaces.MultiDiscrete([3, 2, 4]), 9, 3),
        (gymnasium.spaces.MultiDiscrete([[3, 2], [4, 2]], start=[[1, 0], [-2, 5]]), 11, 4),
        (gymnasium.spaces.Dict({"b": Choice(2), "a": gymnasium.spaces.Tuple((Choice(3),))}), 5, 2),
        (gymnasium.spaces.Tuple((Choice(2), Choice(4))), 6, 2),
        (gymnasium.spaces.Tuple((Choice(2), gymnasium.spaces.MultiDiscrete([2, 2]))), 6, 3),
    ],
)
def test_several_choices_are_seen_one_hot(space, width, ones):
    gymnasium.register("Choices-v0", entry_point=lambda: Recorder(Choice(2), space))
    try:
        env = environments.make("Choices-v0", num_envs=3, seed=0)
    finally:
        del gymnasium.registry["Choices-v0"]
    spec, observation = env.observation_spec(), env.reset().observation
    assert (spec.shape, spec.dtype) == ((width,), np.float32)
    assert (observation.shape, observation.dtype) == ((3, width), np.float32)
    assert set(np.unique(observation)) == {0.0, 1.0}
    assert (observation.sum(1) == ones).all()
    expected, _ = Recorder(Choice(2), space).reset()
    np.testing.assert_array_equal(observation[0], gymnasium.spaces.flatten(space, expected))


Box, Dict, Tuple = gymnasium.spaces.Box, gymnasium.spaces.Dict, gymnasium.spaces.Tuple
NOT_TAKEN = [
    Box(0, 1, (2,), bool),
    Box(0, 1, (0,), np.float32),
    gymnasium.spaces.Text(3),
    gymnasium.spaces.Sequence(Choice(2)),
    gymnasium.spaces.Graph(Choice(2), None),
    gymnasium.spaces.OneOf([Choice(2), Choice(3)]),
    gymnasium.spaces.MultiDiscrete(np.zeros([0], int)),
    Tuple(()),
    Dict({}),
]


@pytest.mark.parametrize(
    ("space", "culprit"),
    [(space, type(space).__name__) for space in NOT_TAKEN]
    + [
        (Tuple((Choice(2), gymnasium.spaces.Text(3))), r"Tuple\(.*which holds Text\("),
        (Dict({"x": Choice(2), "y": Dict({"z": Box(0, 1, (2,), bool)})}), r"Dict\(.*which holds Box\(.*bool\)"),
    ],
)
def test_observation_spaces_that_are_refused(space, culprit):
    """In one message, before there is a vector of them."""
    gymnasium.register("Refused-v0", entry_point=lambda: Recorder(Choice(2), space), disable_env_checker=True)
    taken = "a Box of numbers with a size, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of these"
    try:
        with pytest.raises(ValueError, match=f"the observation space must be {taken}; got {culprit}"):
            environments.make("Refused-v0")
    finally:
        del gymnasium.registry["Refused-v0"]


@pytest.mark.parametrize(
    "space", [*NOT_TAKEN, gymnasium.spaces.MultiBinary(2), Tuple((Choice(2), Choice(3))), Dict({"x": Choice(2)})]
)
def test_action_spaces_that_are_refused(space):
    gymnasium.register("Refused-v0", entry_point=lambda: Recorder(space), disable_env_checker=True)
    message = "the action space must be a Box of numbers with a size, Discrete or MultiDiscrete; got "
    try:
        with pytest.raises(ValueError, match=message + type(space).__name__):
            environments.make("Refused-v0")
    finally:
        del gymnasium.registry["Refused-v0"]


@pytest.mark.parametrize("mode", [*AutoresetMode, None])
def test_streams_must_begin_anew_in_the_next_step(mode):
    vector = SyncVectorEnv([lambda: Recorder(Choice(2))], autoreset_mode=mode or AutoresetMode.NEXT_STEP)
    if mode is None:
        del vector.metadata["autoreset_mode"]
    if mode is AutoresetMode.NEXT_STEP:
        GymnasiumVector(vector).reset()
    else:
        with pytest.raises(ValueError, match=r"metadata\['autoreset_mode'\] must be .*NEXT_STEP.*, got"):
            GymnasiumVector(vector)


class Parity(gymnasium.Env):
    """Observations 7 and 8; the action is to be the parity of all seen."""

    observation_space = Choice(2, start=7)
    action_space = Choice(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._ones = 0
        return self._seen(), {}

    def _seen(self):
        bit = int(self.np_random.integers(2))
        self._ones += bit
        return 7 + bit

    def step(self, action):
        right = float(action == self._ones % 2)
        return self._seen(), right, False, False, {}


@pytest.mark.parametrize("same", [gymnasium.spaces.MultiDiscrete([2], start=[7]), Tuple((Choice(2, start=7),))])
def test_one_choice_is_seen_alike_however_it_is_written(same):
    """A network sees a one-hot of both the Discrete itself and of what holds nothing else; play by it is perfect."""

    class Held(Parity):
        observation_space = same

        def _seen(self):
            return (
                np.array([super()._seen()]) if isinstance(same, gymnasium.spaces.MultiDiscrete) else (super()._seen(),)
            )

    plain, held = (GymnasiumVector(SyncVectorEnv([env, env]), seed=0) for env in (Parity, Held))
    assert plain.observation_spec() == held.observation_spec()
    time_steps, ones = (plain.reset(), held.reset()), np.zeros(2, int)
    for _ in range(8):
        observation = time_steps[0].observation
        np.testing.assert_array_equal(observation, time_steps[1].observation)
        assert observation.dtype == np.float32
        assert (observation.sum(axis=1) == 1).all()
        ones += observation.argmax(axis=1)
        time_steps = [env.step(ones % 2) for env in (plain, held)]
        assert time_steps[0].reward.tolist() == [1.0, 1.0]


def test_an_observation_outside_its_space_is_an_error():
    class Outside(Parity):
        def _seen(self):
            return 9

    with pytest.raises(ValueError, match=r"observation must lie in Discrete\(2, start=7\), got \[9\]"):
        GymnasiumVector(SyncVectorEnv([Outside])).reset()


def test_choices_that_no_memory_holds_one_hot():
    for space in (Choice(10**13), Tuple((Choice(2), gymnasium.spaces.MultiDiscrete([10**13, 2])))):
        with pytest.raises(ValueError, match=r"the observation space .* would take at least .* GiB of memory"):
            GymnasiumVector(SyncVectorEnv([lambda space=space: Recorder(Choice(2), space)]))


class Poisoned(gymnasium.Env):
    """Episodes of two steps; the first episode's observations and rewards are no numbers."""

    observation_space, action_space = Box(-1, 1, (1,), np.float32), Choice(2)
    episode = 0

    def _seen(self):
        return np.array([np.nan if self.episode == 1 else 0.5], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        return self._seen(), np.nan if self.episode == 1 else 1.0, self.steps == 2, False, {}


def test_what_is_no_number_ends_with_its_episode():
    """Nor does it pass to another stream, nor what a vector rewards where it begins anew."""

    class Vector(SyncVectorEnv):
        def step(self, actions):
            begins = self._autoreset_envs.copy()
            observation, reward, *rest = super().step(actions)
            return observation, np.where(begins, np.nan, reward), *rest

    clean = Poisoned()
    clean.episode = 1
    env = GymnasiumVector(Vector([Poisoned, lambda: clean]))
    time_steps = [env.reset(), *(env.step(np.zeros(2, int)) for _ in range(5))]
    rewards, seen = (np.stack(x) for x in zip(*((t.reward, t.observation[:, 0]) for t in time_steps), strict=True))
    assert np.isnan(rewards[1:3, 0]).all()
    np.testing.assert_array_equal(rewards[:, 1], [0, 1, 1, 0, 1, 1])
    np.testing.assert_array_equal(rewards[3:, 0], [0, 1, 1])
    assert (seen[3:] == 0.5).all()
    games = env.finished_games()
    assert np.isnan(games[0][0])
    assert games[1:] == [(2.0, 2, 1), (2.0, 2, 0), (2.0, 2, 1)]


def test_a_dict_is_one_vector():
    """Its parts in its own order; bits and numbers are as they are, and say so by their bounds."""
    space = Dict({"z": gymnasium.spaces.MultiBinary(3), "a": Box(-2, 5, (2, 2), np.int16), "c": Choice(2, start=4)})
    env = GymnasiumVector(SyncVectorEnv([lambda: Recorder(Choice(2), space)]))
    spec, observation = env.observation_spec(), env.reset().observation
    np.testing.assert_array_equal(
        observation[0], gymnasium.spaces.flatten(space, Recorder(Choice(2), space).reset()[0])
    )
    assert (spec.shape, spec.dtype) == ((9,), np.float32)
    by_key = {"a": (-2, 5, 4), "c": (0, 1, 2), "z": (0, 1, 3)}
    parts = [by_key[key] for key in space]
    assert spec.minimum.tolist() == [low for low, _, width in parts for _ in range(width)]
    assert spec.maximum.tolist() == [high for _, high, width in parts for _ in range(width)]


def test_validates():
    utils.validate_py_environment(environments.make("CartPole-v1", num_envs=3, seed=0), episodes=6)


def test_stock_driver():
    env = tf_py_environment.TFPyEnvironment(environments.make("CartPole-v1", num_envs=3, seed=0))
    policy = random_tf_policy.RandomTFPolicy(env.time_step_spec(), env.action_spec())
    seen = []
    driver = dynamic_step_driver.DynamicStepDriver(env, policy, observers=[seen.append], num_steps=30)
    driver.run(maximum_iterations=10)
    assert len(seen) == 10
    assert seen[0].observation.shape == (3, 4)
    assert seen[0].is_first().numpy().all()
    assert isinstance(seen[0].reward, tf.Tensor)


def test_bad_options_and_actions():
    with pytest.raises(ValueError, match="wind"):
        environments.make("CartPole-v1", wind=3)
    env = environments.make("CartPole-v1", num_envs=2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=r"action must lie in 0\.\.1"):
        env.step(np.array([0, 2]))


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv', max_episode_steps=3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = environments.make("of_mine:Mine-v0", num_envs=2, seed=0)
    env.reset()
    assert [env.step(np.array([0, 1])).step_type.tolist() for _ in range(3)][-1] == [LAST] * 2
    with pytest.raises(ValueError, match="no environment is called 'Other-v0'"):
        environments.make("of_mine:Other-v0")
    with pytest.raises(ImportError, match="of_yours:Mine-v0 needs a module that cannot be imported: No module named"):
        environments.make("of_yours:Mine-v0")
    with pytest.raises(ImportError, match=":Mine-v0 needs a module that cannot be imported: Empty module name"):
        environments.make(":Mine-v0")
