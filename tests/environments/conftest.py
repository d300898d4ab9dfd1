import importlib.util
import itertools
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl._keras import keras
from keras_rtrl.agents import R2ACAgent
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.environments import dmlab, with_history
from keras_rtrl.networks import ActorCriticNetwork

# A renderer with LLVM in it, as Mesa's, and a simulator's library that needs it. `draws` is 1 where it calls its own,
# and 0 where it calls TensorFlow's.
RENDERER = "int LLVMContextCreate(void) { return 7; } int renderer_draws(void) { return LLVMContextCreate() == 7; }"
ENGINE = "int renderer_draws(void); int draws(void) { return renderer_draws(); }"


@pytest.fixture(scope="session")
def build_renderer(tmp_path_factory):
    """A function that compiles the two into a folder of their own and returns it; None without a C compiler."""
    compiler = shutil.which("cc")

    def build():
        folder = tmp_path_factory.mktemp("runfiles")
        renderer = f"renderer_{folder.name}"  # of one name there is one in a process
        (folder / "renderer.c").write_text(RENDERER)
        (folder / "engine.c").write_text(ENGINE)
        for source, library, needs in (
            ("renderer", f"lib{renderer}.so", []),
            ("engine", "libdmlab_headless_sw.so", ["-L.", f"-l{renderer}", f"-Wl,-rpath,{folder}"]),
        ):
            arguments = [compiler, "-shared", "-fPIC", f"{source}.c", "-o", library, *needs]
            subprocess.run(arguments, cwd=folder, check=True)
        return folder

    return build if compiler else None


@pytest.fixture(scope="module")
def lab_double(build_renderer):
    """The module deepmind_lab, by its double if it is not installed, which processes that this one starts find too."""
    real = importlib.util.find_spec("deepmind_lab") is not None
    with pytest.MonkeyPatch.context() as patch:
        if not real:
            patch.syspath_prepend(str(pathlib.Path(__file__).parent / "deepmind_lab_double"))
            patch.setenv("DEEPMIND_LAB_DOUBLE_RUNFILES", str(build_renderer()) if build_renderer else "")
        import deepmind_lab

        yield deepmind_lab
        if not real:
            del sys.modules["deepmind_lab"]


@pytest.fixture(scope="module")
def lab_module(lab_double):
    """The module, real or not, able to draw beside TensorFlow."""
    dmlab.load_renderer("software")
    return lab_double


@pytest.fixture(scope="module")
def make_lab(lab_module):
    """A function that makes a small Lab of a level's name, such as "dmlab:rooms_watermaze"."""

    def make(name, observations=("RGB_INTERLEAVED",), **config):
        config = {"height": "24", "width": "32", **config}
        return lab_module.Lab(f"contributed/dmlab30/{name.partition(':')[2]}", list(observations), config)

    return make


@pytest.fixture
def train_disturbed():
    """Trains a small R2AC agent on an environment and calls `disturb()` in mid-rollout, before step 12 of 24.

    Gives the losses of the updates and the step types [B, 24], and checks that no frame lies between two rollouts.
    """

    def train(vector, disturb):
        keras.utils.set_random_seed(0)
        env = with_history(vector)
        specs = tensor_spec.from_spec(env.time_step_spec()), tensor_spec.from_spec(env.action_spec())
        network = ActorCriticNetwork(specs[0].observation, specs[1], encoder="mlp", encoder_units=(8,), units=8)
        agent = R2ACAgent(*specs, network, keras.optimizers.Adam(1e-3), num_streams=env.batch_size)
        stepped = getattr(vector, "halves", [vector])[-1]
        stepping = "step_async" if hasattr(stepped, "step_async") else "step"
        count, step, rollouts, losses = itertools.count(), getattr(stepped, stepping), [], []

        def disturbed(action):
            if next(count) == 12:
                disturb()
            return step(action)

        setattr(stepped, stepping, disturbed)
        driver = RolloutDriver(env, agent.collect_policy, observers=[rollouts.append], num_steps=8)
        update = tf.function(agent.train, autograph=False)
        for _ in range(3):
            driver.run()
            losses.append(float(update(rollouts[-1]).loss))
        for before, after in itertools.pairwise(rollouts):
            np.testing.assert_array_equal(
                before.observation["observation"][:, -1], after.observation["observation"][:, 0]
            )
        return losses, np.concatenate([rollout.step_type[:, :-1] for rollout in rollouts], axis=1)

    return train
