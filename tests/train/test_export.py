"""The exported policy in a fresh process that imports TensorFlow alone."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import environments
from keras_rtrl.engine import native
from keras_rtrl.environments.vector import stream_seeds
from keras_rtrl.layers import RTRL
from keras_rtrl.train import building, cli, config, evaluate, export
from keras_rtrl.train.run_folder import RunFolder

# Plays a batch of 3 for 6 steps; stream 1 begins a new episode at step 3.
SCRIPT = """
import sys
import numpy as np, tensorflow as tf
data = np.load(sys.argv[2])
policy = tf.saved_model.load(sys.argv[1])
state = policy.signatures["initial_state"](batch_size=tf.constant(3))
out = {"action": [], "logits": [], "value": []}
for t in range(6):
    step = policy.signatures["action"](**{k: tf.constant(data[k][t]) for k in data.files}, **state)
    state = {k: v for k, v in step.items() if k.startswith("state_")}
    for name in out:
        out[name].append(step[name].numpy())
assert not any(m.split(".")[0] in ("tf_agents", "tensorflow_probability", "keras_rtrl") for m in sys.modules)
np.savez(sys.argv[3], **out)
"""


@pytest.mark.parametrize("command", [pytest.param(False, marks=pytest.mark.full), True])
def test_fresh_process_acts_as_the_policy(tmaze_run, tmp_path, command):
    path = str(tmaze_run / "policy")
    if command:
        path = str(tmp_path / "exported")
        assert cli.main(["export", str(tmaze_run), path]) == 0
    random = np.random.default_rng(0)
    step_type = np.ones((6, 3), np.int32)
    step_type[0] = step_type[3, 1] = 0
    data = {
        "observation": random.normal(size=(6, 3, 12)).astype(np.float32),
        "last_reward": random.normal(size=(6, 3)).astype(np.float32),
        "last_action": random.integers(0, 4, (6, 3)),
        "step_type": step_type,
    }
    np.savez(tmp_path / "in.npz", **data)
    words = [sys.executable, "-c", SCRIPT, path, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    config.load(RunFolder(tmaze_run).config)
    network = evaluate.load_network(RunFolder(tmaze_run), building.environment(seed=0, streams=1))
    observation = {k: tf.constant(np.moveaxis(v, 0, 1)) for k, v in data.items() if k != "step_type"}
    (logits, value), _ = network(observation, step_type=tf.constant(step_type.T))
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(out["logits"], np.moveaxis(logits.numpy(), 1, 0), atol=1e-5)
    np.testing.assert_allclose(out["value"], value.numpy().T, atol=1e-5)
    np.testing.assert_array_equal(out["action"], np.argmax(logits.numpy(), -1).T)


def test_policy_in_lite_rt_acts_as_the_policy(tmaze_run):
    """Over 1,000 steps, by built-in operations alone."""
    path, steps = str(tmaze_run / "policy"), 1_000
    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["action"])
    run = tf.lite.Interpreter(model_content=converter.convert()).get_signature_runner()
    random = np.random.default_rng(0)
    data = {
        "observation": random.normal(size=(steps, 1, 12)).astype(np.float32),
        "last_reward": random.normal(size=(steps, 1)).astype(np.float32),
        "last_action": random.integers(0, 4, (steps, 1)),
        "step_type": (random.random((steps, 1)) > 0.02).astype(np.int32),
    }
    state, got = {"state_0": np.zeros((1, 8, 1), np.float32)}, []
    for t in range(steps):
        got.append(run(**{name: value[t] for name, value in data.items()}, **state))
        state = {"state_0": got[-1]["state_0"]}

    config.load(RunFolder(tmaze_run).config)
    network = evaluate.load_network(RunFolder(tmaze_run), building.environment(seed=0, streams=1))
    whole = {name: tf.constant(np.moveaxis(value, 0, 1)) for name, value in data.items()}
    step_type = whole.pop("step_type")
    (logits, value), _ = network(whole, step_type=step_type)
    np.testing.assert_allclose([out["logits"][0] for out in got], logits[0], atol=1e-5)
    np.testing.assert_allclose([out["value"][0] for out in got], value[0], atol=1e-5)
    np.testing.assert_array_equal([out["action"][0] for out in got], np.argmax(logits[0], -1))


def test_state_has_no_traces(tmaze_run):
    policy = tf.saved_model.load(str(tmaze_run / "policy"))
    state = policy.signatures["initial_state"](batch_size=tf.constant(2))
    assert {name: tuple(part.shape) for name, part in state.items()} == {"state_0": (2, 8, 1)}


@pytest.mark.skipif(not native.info()["built"], reason="needs the native op")
def test_states_have_the_rows_of_the_observation(tmaze_run):
    policy = tf.saved_model.load(str(tmaze_run / "policy")).signatures
    given = {
        "observation": tf.zeros((1, 12)),
        "last_reward": tf.zeros(1),
        "last_action": tf.zeros(1, tf.int64),
        "step_type": tf.ones(1, tf.int32),
    }
    for rows in (0, 2):
        state = policy["initial_state"](batch_size=tf.constant(rows))
        with pytest.raises(tf.errors.InvalidArgumentError, match="state_0 must have as many rows as "):
            policy["action"](**given, **state)


def test_a_native_network_is_exported_on_stock_ops(tmaze_run, tmp_path):
    config.load(RunFolder(tmaze_run).config)
    network = evaluate.load_network(RunFolder(tmaze_run), building.environment(seed=0, streams=1))
    (layer,) = (part for part in network.submodules if isinstance(part, RTRL))
    layer.implementation = "native"
    export.save(network, str(tmp_path / "policy"))
    assert b"KerasRtrl" not in (tmp_path / "policy" / "saved_model.pb").read_bytes()
    assert layer.implementation == "native"


def test_policies_know_the_scale_of_their_rewards(tmaze_run, tmp_path):
    run, exported = tmp_path / "run", tmp_path / "exported"
    ppo = [
        "environment.name = 'CartPole-v1'",
        "environment.num_envs = 4",
        "environment.options = None",
        "train.rollout_length = 5",
        "agent.name = 'ppo'",
        "PPOConfig.chunk = 5",
        "PPOConfig.num_minibatches = 1",
        "PPOConfig.normalize_rewards = True",
    ]
    words = ["--frames", "400", "--out", str(run), *(word for line in ppo for word in ("--gin", line))]
    assert cli.main(["train", "tmaze_r2ac", *words]) == 0
    assert cli.main(["export", str(run), str(exported)]) == 0
    left, anew, unscaled = (tf.saved_model.load(str(p)) for p in (run / "policy", exported, tmaze_run / "policy"))
    assert left.reward_scale > 1  # of returns of 20 rewards or so
    assert anew.reward_scale == left.reward_scale
    assert unscaled.reward_scale == 1


# Follows the code of docs/export.md, which has play().
PLAY = """
policy = tf.saved_model.load(sys.argv[1]).signatures
json.dump(play(policy, int(sys.argv[2])), open(sys.argv[3], "w"))
"""
BARE = "import json, sys\nsys.modules.update(keras_rtrl=None, tf_agents=None, keras=None, tf_keras=None)\n"


def test_policy_without_this_package_plays_breakout_action_for_action(breakout_run, tmp_path):
    """A whole game, as the documentation says, against the agent's own network in its own environment."""
    pytest.importorskip("ale_py")
    page = Path(__file__).resolve().parents[2] / "docs" / "export.md"
    (play,) = (block for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "ale_py" in block)
    (seed,) = stream_seeds(7, 1)
    words = [str(Path(breakout_run) / "policy"), str(seed), str(tmp_path / "played.json")]
    with subprocess.Popen([sys.executable, "-c", BARE + play + PLAY, *words], stderr=subprocess.PIPE) as server:
        config.load(RunFolder(breakout_run).config)
        made = environments.make("ALE/Breakout-v5", num_envs=1, seed=7, training=False)
        env = environments.with_history(made)
        network = evaluate.load_network(RunFolder(breakout_run), env)
        act = tf.function(network, autograph=False)
        actions, all_logits, games = [], [], []
        time_step, state = env.reset(), network.get_initial_state(1)
        while not games:
            observation = tf.nest.map_structure(tf.constant, time_step.observation)
            (logits, _), state = act(observation, step_type=tf.constant(time_step.step_type), network_state=state)
            action = np.argmax(logits.numpy(), -1)
            actions.append(int(action[0]))
            all_logits.append(logits.numpy()[0])
            time_step = env.step(action)
            games = env.finished_games()
        error = server.communicate()[1]
    assert server.returncode == 0, error[-2000:]
    served_actions, served_logits, score = json.loads((tmp_path / "played.json").read_text())
    assert served_actions == actions
    assert (score, len(actions)) == games[0][:2]
    np.testing.assert_allclose(served_logits, all_logits, atol=1e-5)
