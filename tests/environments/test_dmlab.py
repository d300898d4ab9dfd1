"""DMLab-30 on the real deepmind_lab where it is installed, else on the double of it; the same is asserted of both."""

import concurrent.futures
import ctypes
import importlib.util
import itertools
import os
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.environments import utils
from tf_agents.specs import tensor_spec

from keras_rtrl import environments
from keras_rtrl._keras import keras
from keras_rtrl.agents import R2ACAgent
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.environments import dmlab, registry
from keras_rtrl.environments.vector import stream_seeds
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train.export import PolicyModule, flat

FIRST, MID, LAST = 0, 1, 2
SHORT = "dmlab:rooms_select_nonmatching_object"  # 12 seconds: about 180 steps
SPOKEN = "dmlab:language_select_described_object"
COMPILED = "dmlab:explore_goal_locations_small"
SMALL = {"height": 24, "width": 32}
REAL = importlib.util.find_spec("deepmind_lab") is not None

# Held against the index of the module's own actions.
ACTIONS = [
    {"LOOK_LEFT_RIGHT_PIXELS_PER_FRAME": -20},
    {"LOOK_LEFT_RIGHT_PIXELS_PER_FRAME": 20},
    {"STRAFE_LEFT_RIGHT": -1},
    {"STRAFE_LEFT_RIGHT": 1},
    {"MOVE_BACK_FORWARD": 1},
    {"MOVE_BACK_FORWARD": -1},
    {"MOVE_BACK_FORWARD": 1, "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME": -20},
    {"MOVE_BACK_FORWARD": 1, "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME": 20},
    {"FIRE": 1},
]


pytestmark = pytest.mark.usefixtures("lab_module")


def make_small(name=SHORT, **options):
    """One stream in this process."""
    return environments.make(name, seed=options.pop("seed", 0), workers=0, **{**SMALL, **options})


def play(env, steps, seed=0):
    """Time steps of random play, `reset` first."""
    actions = np.random.default_rng(seed).integers(0, 9, (steps, env.batch_size))
    return [env.reset(), *(env.step(action) for action in actions)]


def assert_equal(left, right):
    tf.nest.map_structure(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("name", [SHORT, SPOKEN])
def test_conforms_to_tf_agents(name):
    env = make_small(name)
    utils.validate_py_environment(env, episodes=1)
    env.close()


def test_specs():
    env = environments.make("dmlab:rooms_watermaze", workers=0)
    assert env.observation_spec().shape == (72, 96, 3)
    assert env.observation_spec().dtype == np.uint8
    assert (env.action_spec().minimum, env.action_spec().maximum) == (0, 8)
    assert (env.batch_size, env.frames_per_step) == (1, 4)
    time_step = env.reset()
    assert time_step.observation.shape == (1, 72, 96, 3)
    assert time_step.observation.std() > 0
    env.close()


def test_step_for_step(make_lab):
    """The first episode is the module's own, each action what it is called; then the last frame stays, and FIRST."""
    env, lab = make_small(seed=3), make_lab(SHORT)
    names = [spec["name"] for spec in lab.action_spec()]
    raw = [np.array([action.get(name, 0) for name in names], np.intc) for action in ACTIONS]
    lab.reset(seed=int(np.random.default_rng(stream_seeds(3, 1)[0]).integers(2**31 - 1)))
    seen = lab.observations()["RGB_INTERLEAVED"]
    time_step = env.reset()
    assert time_step.step_type.tolist() == [FIRST]
    np.testing.assert_array_equal(time_step.observation[0], seen)

    returned, rng = 0.0, np.random.default_rng(0)
    for step in itertools.count(1):
        action = rng.choice([*range(9), 4, 4, 6, 7])
        reward = lab.step(raw[action], num_steps=4)
        returned += reward
        over = not lab.is_running()
        seen = seen if over else lab.observations()["RGB_INTERLEAVED"]
        time_step = env.step(np.array([action]))
        np.testing.assert_array_equal(time_step.observation[0], seen)
        assert time_step.reward.tolist() == [reward]
        assert time_step.step_type.tolist() == [LAST if over else MID]
        assert time_step.discount.tolist() == [0.0 if over else 1.0]
        assert env.finished_games() == ([(returned, step, 0)] if over else [])
        if over:
            break
    assert step == pytest.approx(180, abs=2)

    time_step = env.step(np.array([8]))
    assert (time_step.step_type, time_step.reward, time_step.discount) == (FIRST, 0, 1)
    assert (time_step.observation[0] != seen).any()
    assert env.step(np.array([8])).step_type == MID
    env.reset()
    assert env.finished_games() == []
    env.close()


def test_the_seed_says_it_all():
    one, same, other = (play(make_small(seed=seed), 30) for seed in (1, 1, 2))
    assert_equal(one, same)
    assert any((a.observation != b.observation).any() for a, b in zip(one, other, strict=True))


def test_no_episode_has_another_ones_seed(lab_module, monkeypatch):
    seeds, Lab = [], lab_module.Lab

    class Recording:
        def __init__(self, *arguments):
            self._lab = Lab(*arguments)

        def reset(self, seed):
            seeds.append(seed)
            return self._lab.reset(seed=seed)

        def __getattr__(self, name):
            return getattr(self._lab, name)

    monkeypatch.setattr(lab_module, "Lab", Recording)
    for seed in range(3):
        env = make_small(seed=seed)
        for _ in range(4):
            env.reset()
    assert len(set(seeds)) == 12


def test_levels(tmp_path):
    """All 30, two of them in a training and a hold-out form; those that speak have instructions."""
    assert len(dmlab.SCORES) == 32
    assert len({name.removesuffix("_train").removesuffix("_test") for name in dmlab.SCORES}) == 30
    for name, (random, human) in dmlab.SCORES.items():
        assert random < human
        assert registry.normalized_score(name, random) == 0
        assert registry.normalized_score(name, human) == 1
        (tmp_path / "0001.png").touch()
        photographs = {"dataset_path": str(tmp_path)} if name.startswith("dmlab:psychlab") else {}
        env = make_small(name, **photographs)
        assert isinstance(env.observation_spec(), dict) == name.startswith("dmlab:language")
        env.close()


def test_frames_of_another_size_and_number():
    env = make_small(height=16, width=20, frames_per_step=8)
    assert env.reset().observation.shape == (1, 16, 20, 3)
    assert env.frames_per_step == 8
    assert [step.step_type[0] for step in play(env, 95)].index(LAST) == pytest.approx(90, abs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dmlab:rooms_watermase"}, "no environment is called .* did you mean dmlab:rooms_watermaze"),
        ({"name": "dmlab:"}, "no environment is called"),
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1"),
        ({"num_envs": 2, "workers": 0}, "workers must be num_envs"),
        ({"seed": -1}, "seed must be"),
        ({"height": 0}, "height must be a whole number of at least 1 and at most 16384, got 0"),
        ({"width": "96"}, "width must be a whole number of at least 1 and at most 16384, got '96'"),
        (
            {"frames_per_step": 0.5},
            r"frames_per_step must be a whole number of at least 1 and at most 2147483647, got 0.5",
        ),
        ({"renderer": "etching"}, "renderer must be 'software' or 'hardware', got 'etching'"),
        ({"level_cache": __file__}, "level_cache must be None or a folder that takes files"),
        ({"level_cache": 3}, "level_cache must be None or a folder that takes files"),
        ({"dataset_path": "/nowhere"}, "dataset_path must be None or a folder, got '/nowhere'"),
        (
            {"dataset_path": os.path.dirname(__file__)},
            r"dataset_path must be a folder of photographs, 0001\.png and so on",
        ),
        ({"name": "dmlab:psychlab_continuous_recognition"}, "dataset_path must be the folder .* got None"),
        ({"fps": 30}, "has no option 'fps'; its options are height"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        environments.make(**{"name": SHORT, "workers": 0, **options})


@pytest.mark.parametrize(
    ("action", "message"),
    [([0.0], "integers"), ([9], r"in 0\.\.8"), ([-1], r"in 0\.\.8"), ([0, 0], "shape"), (0, "shape")],
)
def test_bad_actions(action, message):
    env = make_small()
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(np.array(action))


def test_what_the_simulator_refuses_is_one_error(lab_module, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no display")

    monkeypatch.setattr(lab_module, "Lab", refuse)
    with pytest.raises(ValueError, match=r"does not start with renderer 'hardware' and .*: no display"):
        make_small(renderer="hardware")


def test_the_renderer_is_loaded_first_and_apart(lab_module, monkeypatch):
    """Before the simulator, which would load it in TensorFlow's scope, and so that it finds its own symbols first."""
    events, CDLL, Lab = [], ctypes.CDLL, lab_module.Lab

    def load(name, mode=ctypes.DEFAULT_MODE, *rest, **options):
        events.append((os.path.basename(name), mode))
        return CDLL(name, mode, *rest, **options)

    def lab(*arguments):
        events.append(arguments[3])
        return Lab(*arguments)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(lab_module, "Lab", lab)
    make_small().close()
    apart = os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND
    assert events[:2] == [("libdmlab_headless_sw.so", apart), "software"]


def test_actions_do_what_they_are_called_and_no_more(lab_module, make_lab, monkeypatch):
    Lab, steps = lab_module.Lab, []

    class Recording:
        def __init__(self, *arguments):
            self._lab = Lab(*arguments)

        def __getattr__(self, name):
            return getattr(self._lab, name)

        def step(self, action, num_steps):
            steps.append(action.tolist())
            return self._lab.step(action, num_steps=num_steps)

    monkeypatch.setattr(lab_module, "Lab", Recording)
    env = make_small()
    env.reset()
    names = [spec["name"] for spec in make_lab(SHORT).action_spec()]
    for action in range(len(ACTIONS)):
        env.step(np.array([action]))
    assert steps == [[action.get(name, 0) for name in names] for action in ACTIONS]
    env.close()


def test_the_settings_an_instance_gets(lab_module, monkeypatch):
    """The engine tells its instructions to nobody."""
    configs, Lab = [], lab_module.Lab
    monkeypatch.setattr(lab_module, "Lab", lambda *arguments: configs.append(arguments[2]) or Lab(*arguments))
    make_small().close()
    assert configs == [{"height": "24", "width": "32", "logLevel": "WARN"}]


def test_a_module_that_does_not_import_gives_its_cause(monkeypatch, tmp_path):
    """As upstream's wheel, whose own imports Python 3.12 does not have."""
    (tmp_path / "deepmind_lab").mkdir()
    (tmp_path / "deepmind_lab" / "__init__.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deepmind_lab")
    with pytest.raises(ImportError, match=r"deepmind_lab, which is there and cannot be imported: .*no_such_module"):
        make_small()


def test_without_the_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepmind_lab", None)
    with pytest.raises(
        ImportError, match=r"dmlab:.* needs the module deepmind_lab, which is built from its own source"
    ):
        make_small()


# Compiled levels


def test_level_cache(tmp_path):
    folder = tmp_path / "cache"
    one = play(make_small(COMPILED, level_cache=folder), 10)
    compiled = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(compiled) == 1
    assert next(iter(compiled)).endswith(".pk3")
    assert_equal(one, play(make_small(COMPILED, level_cache=folder), 10))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == compiled
    make_small(COMPILED, level_cache=folder, seed=1).reset()
    assert len(list(folder.iterdir())) == 2


def test_a_compiled_level_is_a_file_like_any_other(tmp_path):
    """Others may read it if the umask lets them: a cache is there to be shared."""
    (tmp_path / "level").write_bytes(b"map")
    before = os.umask(0o027)
    try:
        dmlab.LevelCache(tmp_path / "cache").write("key", str(tmp_path / "level"))
    finally:
        os.umask(before)
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o777 == 0o640


def test_nobody_finds_half_a_level(tmp_path):
    """Many write and read one key at once; a reader always has one writer's whole file."""
    size = 200_000

    def write(letter):
        source = tmp_path / f"source-{letter}"
        source.write_bytes(letter.encode() * size)
        for _ in range(20):
            dmlab.LevelCache(tmp_path / "cache").write("a/key of:any kind", str(source))

    def read(number):
        found, target = 0, tmp_path / f"target-{number}"
        for _ in range(40):
            if dmlab.LevelCache(tmp_path / "cache").fetch("a/key of:any kind", str(target)):
                content = target.read_bytes()
                assert len(content) == size
                assert len(set(content)) == 1
                found += 1
        return found

    assert not dmlab.LevelCache(tmp_path / "cache").fetch("a/key of:any kind", str(tmp_path / "none"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        writers, readers = [pool.submit(write, c) for c in "abcd"], [pool.submit(read, i) for i in range(4)]
        for writer in writers:
            writer.result()
        found = sum(reader.result() for reader in readers)
    assert found + read(9) > 40
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(FileNotFoundError):
        dmlab.LevelCache(tmp_path / "cache").write("other", str(tmp_path / "none"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


# Instructions


def test_word_ids():
    ids = dmlab.word_ids("123456789 hat\n hat ")
    assert ids.dtype == np.int32
    assert ids[0] == 0xCBF43926 % 1000 + 1  # the check value that CRC-32 is published with
    assert ids[1] == ids[2] > 0
    assert ids[3:].tolist() == [0] * 13
    assert dmlab.word_ids("").tolist() == [0] * 16
    assert (
        dmlab.word_ids(" ".join("abcdefghijklmnopqrstuvwxyz")).tolist()
        == dmlab.word_ids(" ".join("abcdefghijklmnop")).tolist()
    )


def test_instructions(make_lab):
    env, lab = make_small(SPOKEN, seed=4), make_lab(SPOKEN, ["INSTR"])
    spec = env.observation_spec()
    assert spec["instruction"].shape == (16,)
    assert (spec["instruction"].minimum, spec["instruction"].maximum) == (0, 1000)
    lab.reset(seed=int(np.random.default_rng(stream_seeds(4, 1)[0]).integers(2**31 - 1)))
    words = lab.observations()["INSTR"]
    assert words
    observation = env.reset().observation
    assert observation["instruction"].tolist() == [dmlab.word_ids(words).tolist()]
    assert observation["rgb"].shape == (1, 24, 32, 3)


# Workers


def make_agent(env):
    keras.utils.set_random_seed(0)
    specs = tensor_spec.from_spec(env.time_step_spec()), tensor_spec.from_spec(env.action_spec())
    network = ActorCriticNetwork(specs[0].observation, specs[1], encoder="mlp", encoder_units=(8,), units=8)
    return R2ACAgent(*specs, network, keras.optimizers.Adam(1e-3), num_streams=env.batch_size)


def test_a_process_a_stream_and_none_disturbs_another():
    """A killed one gives LAST with discount 1 and the frame held, then FIRST; the others go on undisturbed."""
    env = environments.make(SHORT, num_envs=3, seed=0, **SMALL)
    calm = environments.make(SHORT, num_envs=3, seed=0, **SMALL)
    assert len({os.getpid(), *env.worker_pids}) == 4
    assert_equal(env.reset(), calm.reset())
    rng = np.random.default_rng(0)
    for step in itertools.count():
        if step == 50:
            os.kill(env.worker_pids[1], signal.SIGKILL)
        before, action = env.current_time_step(), rng.integers(0, 9, 3)
        time_step, expected = env.step(action), calm.step(action)
        if step < 50:
            assert_equal(time_step, expected)
        assert_equal(*(tf.nest.map_structure(lambda x: x[[0, 2]], x) for x in (time_step, expected)))
        if step == 50:
            assert (time_step.step_type[1], time_step.reward[1], time_step.discount[1]) == (LAST, 0, 1)
            np.testing.assert_array_equal(time_step.observation[1], before.observation[1])
        if step == 51:
            assert time_step.step_type.tolist() == [MID, FIRST, MID]
            assert (time_step.observation[1] != expected.observation[1]).any()
        if expected.step_type[0] == LAST:
            break
    assert step > 51
    assert env.finished_games() == [game for game in calm.finished_games() if game[2] != 1]
    for vector in (env, calm):
        vector.close()


def test_training_goes_on_after_a_crash(tmp_path, monkeypatch):
    """The learner takes instructions, survives a process that dies in mid-rollout, and its policy can be exported."""
    crash = tmp_path / "crash"
    monkeypatch.setenv("DEEPMIND_LAB_DOUBLE_ABORT", str(crash))
    vector = environments.make(SPOKEN, num_envs=2, seed=0, **SMALL)
    env = environments.with_history(vector)
    agent, rollouts = make_agent(env), []
    driver = RolloutDriver(env, agent.collect_policy, observers=[rollouts.append], num_steps=5)
    train = tf.function(agent.train, autograph=False)
    losses = []
    for update in range(4):
        if update == 2:
            if REAL:
                os.kill(vector.worker_pids[0], signal.SIGKILL)
            else:
                crash.touch()
        driver.run()
        losses.append(float(train(rollouts[-1]).loss))
    assert np.isfinite(losses).all()
    step_types = np.concatenate([rollout.step_type[:, :-1] for rollout in rollouts], axis=1)
    assert (step_types == LAST).sum() == 1
    stream = int(np.flatnonzero((step_types == LAST).any(axis=1))[0])
    assert step_types[1 - stream].tolist() == [FIRST, *[MID] * 19]
    for before, after in itertools.pairwise(rollouts):
        last, first = (
            tf.nest.map_structure(lambda x: x[:, -1], before),
            tf.nest.map_structure(lambda x: x[:, 0], after),
        )
        assert_equal(last.observation, first.observation)

    policy = PolicyModule(agent.network)
    observation = {name: tf.convert_to_tensor(value) for name, value in flat(env.reset().observation).items()}
    assert {"observation_rgb", "observation_instruction"} < set(observation)
    state = policy.initial_state(batch_size=tf.constant(2))
    out = policy.action(step_type=tf.zeros(2, tf.int32), **observation, **state)
    (logits, _), _ = agent.network(env.current_time_step().observation, step_type=tf.zeros(2, tf.int32))
    np.testing.assert_allclose(out["logits"], logits, atol=1e-6)
    other = {**observation, "observation_instruction": observation["observation_instruction"] + 1}
    assert np.abs(policy.action(step_type=tf.zeros(2, tf.int32), **other, **state)["logits"] - logits).max() > 0
    env.close()
