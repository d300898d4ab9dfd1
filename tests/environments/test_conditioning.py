import functools

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.utils.env_checker import check_env

from keras_rtrl import environments
from keras_rtrl.environments.conditioning import TraceConditioningEnv

FIRST, MID = 0, 1
NAMES = ["TraceConditioning-v0", "TracePatterning-v0"]
GAMMA = 0.9


@functools.cache
def play(name, steps=3000, streams=2, seed=5, jit_compile=True):
    """Time steps and ideal predictions [T + 1, B, ...] of one compiled loop."""
    env = environments.make(name, num_envs=streams, seed=seed)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run():
        time_step = (env.reset(), env.ideal_prediction())
        arrays = tf.nest.map_structure(
            lambda x: tf.TensorArray(x.dtype, steps + 1, element_shape=x.shape).write(0, x), time_step
        )

        def body(t, arrays):
            time_step = (env.step(tf.zeros([streams], tf.int64)), env.ideal_prediction())
            return t + 1, tf.nest.map_structure(lambda array, x: array.write(t, x), arrays, time_step)

        _, arrays = tf.while_loop(lambda t, _: t <= steps, body, (1, arrays), parallel_iterations=1)
        return tf.nest.map_structure(lambda array: array.stack(), arrays)

    time_steps, predictions = tf.nest.map_structure(lambda x: x.numpy(), run())
    return env, time_steps, predictions


def returns(us):
    """G_t of US [T + 1, B]; the last 200 left out."""
    g = np.zeros(us.shape)
    for t in range(len(us) - 2, -1, -1):
        g[t] = us[t + 1] + GAMMA * g[t + 1]
    return g[:-200]


def onsets(x):
    """Steps at which the bits x [T] come on, and how long they stay each time; the last is left out."""
    change = np.diff(np.concatenate([[0], x, [0]]))
    on, off = np.flatnonzero(change > 0), np.flatnonzero(change < 0)
    return on[:-1], (off - on)[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_gymnasium_form_step_for_step(name):
    _, played, _ = play(name)
    for stream, steps in ((0, 200), (1, 2000)):
        env = gymnasium.make(name, **({"stream": stream} if stream else {}))
        observation, _ = env.reset(seed=5)
        np.testing.assert_array_equal(played.observation[0, stream], observation)
        for t in range(1, steps + 1):
            observation, reward, terminated, truncated, _ = env.step(0)
            np.testing.assert_array_equal(played.observation[t, stream], observation)
            assert played.reward[t, stream] == reward
            assert not terminated
            assert not truncated


@pytest.mark.parametrize("name", NAMES)
def test_a_later_reset_starts_a_trial_in_both_forms(name):
    env, plain = environments.make(name, num_envs=1, seed=2), gymnasium.make(name)
    for seed, steps in ((2, 40), (None, 120)):
        time_step, (observation, _) = env.reset(), plain.reset(seed=seed)
        for _ in range(steps):
            np.testing.assert_array_equal(time_step.observation[0], observation)
            time_step, (observation, *_) = env.step(tf.constant([0], tf.int64)), plain.step(0)


@pytest.mark.parametrize("name", NAMES)
def test_graph_and_xla_agree(name):
    _, compiled, predictions = play(name, steps=400)
    _, graph, graph_predictions = play(name, steps=400, jit_compile=False)
    tf.nest.map_structure(np.testing.assert_array_equal, compiled, graph)
    np.testing.assert_array_equal(predictions, graph_predictions)


@pytest.mark.parametrize("name", NAMES)
def test_time_steps(name):
    env, played, predictions = play(name)
    assert (played.step_type[0] == FIRST).all()
    assert (played.step_type[1:] == MID).all()
    assert (played.discount == 1).all()
    np.testing.assert_array_equal(played.reward, played.observation[..., 0])
    assert set(np.unique(played.observation)) == {0.0, 1.0}
    assert played.observation.shape == (3001, 2, *env.observation_spec().shape)
    assert predictions.dtype == np.float32
    assert (played.observation[:, 0] != played.observation[:, 1]).any()
    assert (played.observation != play(name, seed=6)[1].observation).any()


def test_trials_of_conditioning():
    _, played, _ = play("TraceConditioning-v0", steps=30_000)
    us, cs = played.observation[:, 0, 0], played.observation[:, 0, 1]
    cs_onsets, cs_lengths = onsets(cs)
    us_onsets, us_lengths = onsets(us)
    assert cs_onsets[0] == 0
    assert set(cs_lengths) == {4}
    assert set(us_lengths) == {2}
    isi = us_onsets[: len(cs_onsets) - 1] - cs_onsets[:-1]
    iti = cs_onsets[1:] - us_onsets[: len(cs_onsets) - 1]
    assert set(isi) == set(range(7, 14))
    assert (iti.min(), iti.max()) == (80, 120)
    assert abs(isi.mean() - 10) < 4 * 2 / np.sqrt(len(isi))
    assert abs(iti.mean() - 100) < 4 * 11.8 / np.sqrt(len(iti))


def test_distractors_of_conditioning():
    _, played, _ = play("TraceConditioning-v0", steps=30_000, streams=16)
    for k in range(1, 11):
        distractor = played.observation[..., 1 + k]
        _, lengths = onsets(distractor[:, 0])
        assert set(lengths) == {4}
        off, before = distractor[:-1] == 0, np.sum(distractor[:-1] == 0)
        rate = (distractor[1:][off] == 1).mean()  # per step that follows an off one
        p = 1 / (10 * k)
        assert abs(rate - p) < 4 * np.sqrt(p / before)


def test_trials_of_patterning():
    _, played, _ = play("TracePatterning-v0", steps=20_000, streams=16)
    shown, activated = [], []
    for stream in range(16):
        us, css = played.observation[:, stream, 0], played.observation[:, stream, 1:7]
        starts, lengths = onsets(css.max(1))
        assert set(lengths) == {4}
        assert set(np.diff(starts)[np.diff(starts) < 140]) <= set(range(87, 134))
        assert set(onsets(us)[1]) == {2}
        for start in starts[:-1]:
            assert (css[start : start + 4] == css[start]).all()
            after = us[start : start + 80]
            assert after.sum() == after[7:15].sum()
            shown.append(tuple(css[start].astype(int)))
            activated.append(after.any())
    activating = {pattern for pattern, us in zip(shown, activated, strict=True) if us}
    assert len(activating) == 10
    assert all(sum(pattern) == 3 for pattern in activating)
    assert activating.isdisjoint(pattern for pattern, us in zip(shown, activated, strict=True) if not us)
    assert len(set(shown)) == 63  # and the one with no CS, which no onset tells
    assert abs(np.mean(activated) - 0.5) < 4 * 0.5 / np.sqrt(len(activated)) + 0.005
    distractors = played.observation[:, :, 7:]
    assert abs(distractors[0].mean() - 0.5) < 4 * 0.5 / np.sqrt(distractors[0].size)
    assert (distractors[:4] == distractors[0]).all()
    assert (distractors[4:7] == 0).all()


def test_patterns_come_from_the_seed():
    def drawn(seed):
        env = gymnasium.make("TracePatterning-v0").unwrapped
        env.reset(seed=seed)
        return [env.step(0)[0].tolist() for _ in range(300)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


@pytest.mark.parametrize(
    ("name", "mean", "mean_error", "floor"),
    [
        ("TraceConditioning-v0", 2 / 110 / 0.1, 0.1486, 0.0125),
        pytest.param("TracePatterning-v0", 1 / 110 / 0.1, 0.0828, 0.0100, marks=pytest.mark.full),
    ],
)
def test_reference_points(name, mean, mean_error, floor):
    """What the mean and the ideal predictor score in 768,000 steps; of trace conditioning both are known."""
    env, played, predictions = play(name, steps=12_000, streams=64)
    g, v = returns(played.reward), predictions[:-200].astype(np.float64)
    assert env.mean_return == pytest.approx(mean, rel=1e-9)
    assert g.mean() == pytest.approx(mean, rel=0.02)
    assert ((g - mean) ** 2).mean() == pytest.approx(mean_error, rel=0.02)
    assert ((g - v) ** 2).mean() == pytest.approx(floor, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_ideal_prediction_leaves_nothing_to_predict(name):
    """The error is orthogonal to whatever the past observations say: here to the prediction and to their averages."""
    _, played, predictions = play(name, steps=12_000, streams=64)
    error = returns(played.reward) - predictions[:-200]
    features = [np.ones_like(error), predictions[:-200]]
    for decay in (0.5, 0.9, 0.98):
        average = np.zeros(played.observation.shape[1:])
        averages = np.zeros((*error.shape, average.shape[-1]))
        for t in range(len(error)):
            average = decay * average + played.observation[t]
            averages[t] = average
        features += list(np.moveaxis(averages, -1, 0))
    for feature in features:
        per_stream = (error * feature).mean(0)
        assert abs(per_stream.mean()) < 5 * per_stream.std() / np.sqrt(len(per_stream)) + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_checker(name):
    check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_with_history(name):
    env = environments.with_history(environments.make(name, num_envs=2, seed=0))
    env.reset()
    time_step = env.step(tf.constant([0, 0], tf.int64))
    assert time_step.observation["observation"].shape == (2, 12)
    assert env.ideal_prediction().shape == (2,)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no environment is called 'TracePattern-v0'; did you mean TracePatterning-v0"):
        environments.make("TracePattern-v0")
    with pytest.raises(ValueError, match="has no option 'isi'"):
        environments.make("TraceConditioning-v0", isi=3)
    env = TraceConditioningEnv()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be an int in 0\.\.0"):
        env.step(1)
