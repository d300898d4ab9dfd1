"""R2AC on the T-maze: a whole agent in one file, from the environment to the figure.

A cue in the first step says which arm holds the reward at the end of a corridor of 40 steps. The agent learns from
rollouts of 10 steps, so no rollout holds both the cue and the reward. Truncated BPTT never connects the two: the agent
learns to enter one of the arms, and half of its choices are right. RTRL carries the cue's influence on the weights
forward in its traces, and the agent learns to choose the right arm.

    python examples/r2ac_tmaze.py                              # RTRL, about a minute on two cores
    python examples/r2ac_tmaze.py --gradient tbptt             # the same agent with its gradient cut at each rollout
    python examples/r2ac_tmaze.py --corridor 100 --forget-bias 5 --steps 4000000

--out receives metrics.csv and learning_curve.png.
"""

import argparse
import csv
import os
import time
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TF-Agents needs tf-keras, which must be chosen before TensorFlow is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib
import tensorflow as tf
import tf_keras as keras
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import StepType
from tqdm import tqdm

from keras_rtrl import agents, drivers, environments, networks

matplotlib.use("agg")
from matplotlib import pyplot as plt

ROLLOUTS = 250  # a compiled call: so many rollouts, each followed by an update of the agent


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gradient", choices=("rtrl", "tbptt", "instant"), default="rtrl")
    parser.add_argument("--core", choices=("elstm", "rtu"), default="elstm")
    parser.add_argument("--corridor", type=int, default=40, help="steps between the cue and the choice")
    parser.add_argument("--forget-bias", type=float, default=4.0, help="of an eLSTM: about log(corridor)")
    parser.add_argument("--steps", type=int, default=2_000_000, help="steps of all streams together")
    parser.add_argument("--streams", type=int, default=16, help="number of mazes")
    parser.add_argument("--rollout", type=int, default=10, help="steps of a maze between two updates")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at the start; it falls to 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/r2ac_tmaze"), help="folder")
    return parser.parse_args(argv)


def make_agent(args, env, updates):
    """The R2AC agent with its network and its optimiser."""
    time_step_spec, action_spec = (tensor_spec.from_spec(spec) for spec in (env.time_step_spec(), env.action_spec()))
    network = networks.ActorCriticNetwork(
        time_step_spec.observation,  # the maze's observation, the last reward and the last action
        action_spec,
        encoder="mlp",
        encoder_units=(),  # the observation goes straight into the core
        core=args.core,
        core_options={"forget_bias": args.forget_bias} if args.core == "elstm" else {"r_min": 0.9},
        units=32,
        gradient=args.gradient,
        head_units=(64,),
    )
    return agents.R2ACAgent(
        time_step_spec,
        action_spec,
        network,
        keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(args.learning_rate, updates, 0.0)),
        num_streams=args.streams,
        config=agents.R2ACConfig(gamma=0.99, entropy_regularization=0.01, gradient_clipping=1.0),
        train_step_counter=tf.Variable(0, dtype=tf.int64),
    )


def make_trainer(env, agent, rollout):
    """A compiled function that plays and learns ROLLOUTS times.

    It takes the environment's time step and the policy's state and returns both as they are afterwards, with the number
    of mazes that ended, the number of right choices among them, and the mean of each scalar that the agent reports.
    """
    driver = drivers.RolloutDriver(env, agent.collect_policy, num_steps=rollout)

    @tf.function(jit_compile=True, autograph=False)
    def train(time_step, policy_state):
        def body(i, time_step, policy_state, ended, right, sums):
            frames, time_step, policy_state = driver.rollout(time_step, policy_state)
            info = agent.train(frames)  # row b of every rollout is maze b, whose traces the agent carries on
            last = frames.next_step_type[:, :-1] == StepType.LAST
            ended += tf.math.count_nonzero(last)
            right += tf.math.count_nonzero(last & (frames.reward[:, :-1] > 0))
            return i + 1, time_step, policy_state, ended, right, sums + tf.stack([info.loss, *info.extra])

        zero = tf.constant(0, tf.int64)
        sums = tf.zeros([len(agent.loss_names)])
        start = (tf.constant(0), time_step, policy_state, zero, zero, sums)
        _, *result, sums = tf.while_loop(lambda i, *_: i < ROLLOUTS, body, start)
        return (*result, sums / ROLLOUTS)

    return train


def learn(args):
    """Trains the agent; yields (steps, share of right choices, seconds, the agent's scalars by name) as it goes."""
    keras.utils.set_random_seed(args.seed)
    env = environments.make("TMaze-v0", num_envs=args.streams, seed=args.seed, corridor=args.corridor)
    env = environments.with_history(env)
    steps_a_call = ROLLOUTS * args.rollout * args.streams
    calls = -(-args.steps // steps_a_call)
    agent = make_agent(args, env, updates=calls * ROLLOUTS)
    train = make_trainer(env, agent, args.rollout)
    time_step = env.reset()
    policy_state = agent.collect_policy.get_initial_state(args.streams)
    started = time.monotonic()
    for call in range(1, calls + 1):
        time_step, policy_state, ended, right, means = train(time_step, policy_state)
        share = float(right) / max(int(ended), 1)
        scalars = dict(zip(agent.loss_names, means.numpy(), strict=True))
        yield call * steps_a_call, share, time.monotonic() - started, scalars


def plot(rows, args):
    """Draws the share of right choices over steps, and the shares that need no memory."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.plot([row["steps"] for row in rows], [row["right"] for row in rows], label=f"{args.core}, {args.gradient}")
    axes.axhline(0.5, color="grey", linestyle="--", linewidth=1, label="one arm always, no memory")
    axes.axhline(0.25, color="grey", linestyle=":", linewidth=1, label="random play")
    axes.set(xlabel="steps of all mazes", ylabel="right choices", ylim=(0, 1.05))
    axes.set_title(f"T-maze, corridor of {args.corridor} steps, rollouts of {args.rollout}")
    axes.legend(loc="lower right")
    figure.savefig(args.out / "learning_curve.png", dpi=120, bbox_inches="tight")
    plt.close(figure)


def main(argv=None):
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tqdm(total=args.steps, unit=" steps", unit_scale=True) as bar, open(args.out / "metrics.csv", "w") as file:
        writer = None
        for steps, right, seconds, scalars in learn(args):
            rows.append({"steps": steps, "right": right, "seconds": seconds, **scalars})
            writer = writer or csv.DictWriter(file, rows[0])
            if len(rows) == 1:
                writer.writeheader()
            writer.writerow(rows[-1])
            bar.update(steps - bar.n)
            bar.set_postfix(right=f"{right:.0%}")
    plot(rows, args)
    print(f"{rows[-1]['right']:.0%} right choices at the end, {rows[-1]['seconds']:.0f} s, {args.out}")
    return rows


if __name__ == "__main__":
    main()
