import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.utils.env_checker import check_env
from tf_agents.trajectories.time_step import StepType

from keras_rtrl import environments

STREAMS, CORRIDOR, STEPS = 3, 4, 60


def play_in_graph(seed, actions, mode="eager", corridor=CORRIDOR):
    """reset, then one step for each row of actions; all time steps stacked in time."""
    env = environments.make("TMaze-v0", num_envs=actions.shape[1], seed=seed, corridor=corridor)
    reset, step = env.reset, env.step
    if mode != "eager":
        reset, step = (tf.function(f, jit_compile=mode == "xla") for f in (env.reset, env.step))
    time_steps = [reset()] + [step(tf.constant(action)) for action in actions]
    return tf.nest.map_structure(lambda *x: np.stack(x), *time_steps)


def random_actions(steps=STEPS, streams=STREAMS):
    return np.random.default_rng(0).integers(0, 2, (steps, streams))


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_equals_the_gymnasium_form_step_for_step(mode):
    actions = random_actions()
    played = play_in_graph(7, actions, mode)
    choices = []
    for stream in range(STREAMS):
        env = gymnasium.make("TMaze-v0", corridor=CORRIDOR, **({"stream": stream} if stream else {}))
        done = True
        for t in range(STEPS + 1):
            if done:
                observation, _ = env.reset(seed=7 if t == 0 else None)
                step_type, reward, done = StepType.FIRST, 0.0, False
            else:
                observation, reward, done, truncated, _ = env.step(actions[t - 1, stream])
                assert not truncated
                step_type = StepType.LAST if done else StepType.MID
                choices += [reward] if done else []
            np.testing.assert_array_equal(played.observation[t, stream], observation)
            assert played.step_type[t, stream] == step_type
            assert played.reward[t, stream] == reward
            assert played.discount[t, stream] == (0.0 if done else 1.0)
    assert len(choices) >= 20
    assert set(choices) == {-1.0, 1.0}


def test_the_rules():
    played = play_in_graph(1, random_actions())
    period = CORRIDOR + 3  # cue, corridor, junction, end
    for start in range(0, STEPS + 1 - period, period):
        place = played.observation[start : start + period, :, :4].argmax(-1)
        assert (played.observation[start : start + period, :, :4].sum(-1) == 1).all()
        assert (place[0] < 2).all()
        assert (place[1:-2] == 2).all()
        assert (place[-2:] == 3).all()
        chosen = random_actions()[start + period - 2]
        np.testing.assert_array_equal(played.reward[start + period - 1], np.where(chosen == place[0], 1.0, -1.0))
        assert (played.reward[start : start + period - 1] == 0).all()
        assert (played.discount[start + period - 1] == 0).all()
    assert set(np.unique(played.observation)) == {0.0, 1.0}


@pytest.mark.parametrize("action", [2, 3])
def test_two_actions_are_always_wrong(action):
    played = play_in_graph(0, np.full((100, 8), action), "graph", corridor=1)
    assert (played.reward[played.step_type == StepType.LAST] == -1).all()


def test_cues_and_bits_are_fair():
    played = play_in_graph(0, np.zeros((400, 64), np.int64), "xla", corridor=1)
    cues = played.observation[played.step_type == StepType.FIRST][:, 1]
    assert abs(cues.mean() - 0.5) < 4 * 0.5 / np.sqrt(cues.size)
    bits = played.observation[..., 4:]
    assert (abs(bits.mean((0, 1)) - 0.5) < 4 * 0.5 / np.sqrt(bits[..., 0].size)).all()
    first_bits = np.concatenate([bits[played.step_type == StepType.FIRST], cues[:, None]], axis=1)
    correlation = np.corrcoef(first_bits.T) - np.eye(9)
    assert abs(correlation).max() < 4.5 / np.sqrt(cues.size)


def test_no_two_streams_and_no_two_seeds_play_the_same():
    actions = random_actions(streams=8)
    seeds = [*range(6), 2**32, 2**63 - 1]
    played = np.concatenate([play_in_graph(s, actions, "graph").observation[..., 4:] for s in seeds], axis=1)
    played = np.moveaxis(played, 1, 0).reshape(len(seeds) * 8, -1)
    assert len(np.unique(played, axis=0)) == len(seeds) * 8
    agreement = (played[:, None] == played[None]).mean(-1)[~np.eye(len(played), dtype=bool)]
    assert agreement.max() < 0.65  # 488 fair bits: the greatest of 2016 pairs stays below


def test_without_a_seed_every_environment_is_new():
    actions = random_actions(steps=10)
    assert (play_in_graph(None, actions).observation != play_in_graph(None, actions).observation).any()


def test_a_compiled_loop_from_where_the_environment_stands():
    actions = random_actions()
    env = environments.make("TMaze-v0", num_envs=STREAMS, seed=7, corridor=CORRIDOR)

    @tf.function(jit_compile=True)
    def run(actions):
        first = env.current_time_step().observation
        rows = tf.TensorArray(tf.float32, len(actions))
        _, rows = tf.while_loop(
            lambda t, _: t < len(actions),
            lambda t, rows: (t + 1, rows.write(t, env.step(actions[t]).observation)),
            (0, rows),
        )
        return first, rows.stack()

    expected = play_in_graph(7, actions).observation
    for part in (slice(0, 25), slice(25, 50)):
        first, rest = run(tf.constant(actions[part]))
        np.testing.assert_array_equal(np.concatenate([first[None], rest]), expected[part.start : part.stop + 1])


def test_step_before_reset_is_a_reset():
    env = environments.make("TMaze-v0", num_envs=2, seed=0)
    expected = environments.make("TMaze-v0", num_envs=2, seed=0).reset()
    time_step = env.step(tf.constant([0, 0], tf.int64))
    tf.nest.map_structure(np.testing.assert_array_equal, time_step, expected)


def test_checkpoint_restores_the_very_game(tmp_path):
    actions = tf.constant(random_actions())
    env = environments.make("TMaze-v0", num_envs=STREAMS, seed=7, corridor=CORRIDOR)
    for action in actions[:11]:
        env.step(action)
    path = tf.train.Checkpoint(env=list(env.variables)).write(str(tmp_path / "env"))
    other = environments.make("TMaze-v0", num_envs=STREAMS, seed=7, corridor=CORRIDOR)
    tf.train.Checkpoint(env=list(other.variables)).read(path).assert_consumed()
    for action in actions[11:30]:
        tf.nest.map_structure(np.testing.assert_array_equal, env.step(action), other.step(action))


def test_gymnasium_checker():
    check_env(gymnasium.make("TMaze-v0", corridor=2).unwrapped, skip_render_check=True)


def test_gymnasium_form_through_a_vector():
    env = gymnasium.make_vec("TMaze-v0", num_envs=3, vectorization_mode="sync", corridor=2)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (3, 12)


@pytest.mark.parametrize("corridor", [0, -1, 2.5, True])
def test_bad_corridor(corridor):
    with pytest.raises(ValueError, match="corridor must be a whole number of at least 1"):
        environments.make("TMaze-v0", corridor=corridor)


def test_unknown_option():
    with pytest.raises(ValueError, match="no option 'length'; its options are corridor"):
        environments.make("TMaze-v0", length=3)


def test_bad_use_of_the_gymnasium_form():
    env = gymnasium.make("TMaze-v0").unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be an int in 0\.\.3"):
        env.step(4)


def test_corridor_has_40_steps_unless_said_otherwise():
    env, one = environments.make("TMaze-v0", num_envs=1, seed=0), gymnasium.make("TMaze-v0")
    env.reset()
    one.reset(seed=0)
    for last in [False] * 41 + [True]:
        assert (env.step(tf.zeros([1], tf.int64)).step_type[0] == StepType.LAST) == last
        assert one.step(0)[2] == last
