"""An encoder that begins where another run's ended, and stays there."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.train import building, cli, config, evaluate
from keras_rtrl.train.run_folder import RunFolder

TINY = (
    "ActorCriticNetwork.encoder = 'mlp'",
    "ActorCriticNetwork.encoder_units = (8,)",
    "ActorCriticNetwork.units = 4",
    "ActorCriticNetwork.normalize_observation = True",
    "environment.num_envs = 2",
    "train.rollout_length = 4",
    "train.log_updates = 2",
    "train.learning_rate = 1e-2",
    "train.final_learning_rate = 1e-2",
)


def train(run, *bindings, preset="atari_r2ac_cpu"):
    words = ["train", preset, "--game", "CartPole-v1", "--frames", "32", "--out", run]
    return cli.main([*words, *(word for binding in (*TINY, *bindings) for word in ("--gin", binding))])


def weights(run):
    """Weights of a run's newest checkpoint: the encoder's with its normalisation's, and all others."""
    config.load(RunFolder(run).config)
    network = evaluate.load_network(RunFolder(run), building.environment(seed=0, streams=1))
    encoder = [v for name in network.encoder_parts for v in getattr(network, name).variables]
    others = {v.ref() for v in network.variables} - {v.ref() for v in encoder}
    return [v.numpy() for v in encoder], [v.numpy() for v in network.variables if v.ref() in others]


def differ(one, two):
    return [bool((a != b).any()) for a, b in zip(one, two, strict=True)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a run of CartPole by TBPTT; by PPO, which normalises observations."""
    run = str(tmp_path_factory.mktemp("frozen") / "pretrained")
    core = ["ActorCriticNetwork.recurrent_parameters = None", "ActorCriticNetwork.gradient = 'tbptt'"]
    ppo = ["PPOConfig.num_minibatches = 2", "PPOConfig.chunk = 4", "PPOConfig.num_epochs = 1"]
    assert train(run, *core, *ppo, preset="ppo_rtu_mujoco_p") == 0
    return run


def test_frozen_encoder_is_the_other_runs_and_stays_so(pretrained, tmp_path):
    moved, run = str(tmp_path / "moved"), str(tmp_path / "run")
    shutil.copytree(pretrained, moved)
    assert train(run, f"train.encoder_from = {moved!r}", "ActorCriticNetwork.train_encoder = False") == 0
    given = weights(pretrained)[0]
    encoder, others = weights(run)
    assert differ(encoder, given) == [False] * 5  # kernel, bias; count, mean, sum of squares
    assert np.abs(given[0]).max() > 0
    assert given[2] == 32

    shutil.rmtree(moved)  # to go on a run needs itself alone
    assert cli.main(["train", "--resume", run, "--frames", "64"]) == 0
    encoder, others_after = weights(run)
    assert differ(encoder, given) == [False] * 5
    assert len(others) > 8
    assert all(differ(others, others_after))


def test_frozen_encoder_is_left_out_of_what_is_trained():
    actions = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 1)
    scalar = tf.TensorSpec([], tf.float32)
    history = {"observation": tf.TensorSpec([4], tf.float32), "last_reward": scalar, "last_action": actions}
    counts = {}
    for train_encoder in (True, False):
        network = ActorCriticNetwork(history, actions, units=4, train_encoder=train_encoder, normalize_observation=True)
        network.create_variables()
        counts[train_encoder] = (len(network.trainable_variables), len(network.variables))
        assert len(network.encoder_variables) == (2 if train_encoder else 0)
        observation = tf.nest.map_structure(lambda spec: tf.ones([1, 1, *spec.shape], spec.dtype), history)
        reset = tf.constant([[False]])
        with tf.GradientTape() as tape:
            before = network.encode(observation, reset)
        gradients = tape.gradient(before, network.get_layer("mlp").variables)
        assert [gradient is not None for gradient in gradients] == [train_encoder] * 2
        network.update_normalizer(observation)
        assert bool(tf.reduce_all(network.encode(observation, reset) == before)) != train_encoder
    assert counts[False] == (counts[True][0] - 2, counts[True][1])
    with pytest.raises(ValueError, match="train_encoder must be True or False, got 1"):
        ActorCriticNetwork(history, actions, train_encoder=1)


@pytest.mark.parametrize(
    ("binding", "names"),
    [
        ("train.encoder_from = 'nope'", "train.encoder_from: nope: no such run folder"),
        ("train.encoder_from = 3", "train.encoder_from must be the folder of a run, got 3"),
        ("ActorCriticNetwork.encoder_units = (9,)", "incompatible tensor with shape (4, 8)"),
        ("ActorCriticNetwork.encoder_units = (8, 8)", "its encoder has other layers than this network's"),
        ("ActorCriticNetwork.normalize_observation = False", "its encoder has other layers than this network's"),
    ],
)
def test_encoder_that_does_not_fit(pretrained, tmp_path, capsys, binding, names):
    assert train(str(tmp_path / "run"), f"train.encoder_from = {pretrained!r}", binding) == 2
    text = capsys.readouterr().err
    assert names in text
    assert "train.encoder_from" in text
    assert not list(tmp_path.iterdir())
