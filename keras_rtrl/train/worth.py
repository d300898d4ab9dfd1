"""What the gradient of a run's recurrent core is worth: how far back it reaches, and how stale its traces are."""

import collections
import csv
import dataclasses
import functools
import io

import numpy as np
import tensorflow as tf
from tf_agents.trajectories import time_step as ts
from tqdm import tqdm

from keras_rtrl._checks import fits_memory
from keras_rtrl._errors import UsageError
from keras_rtrl.agents.base import RolloutAgent
from keras_rtrl.diagnostics import REACHED, STREAMS, GradientWorth, mean_estimates, reach
from keras_rtrl.layers import RTRL
from keras_rtrl.networks.cores import RTRLCore
from keras_rtrl.train import building, checkpoints, config, setup
from keras_rtrl.train.run_folder import replacing, write_text

_LABELS = {"exact": "exact", "rtrl": "RTRL, carried traces", "rtrl_carried_state": "RTRL, carried traces and state"}

Worth = collections.namedtuple("Worth", ["estimates", "errors", "weights", "streams", "shape", "known", "below"])
Worth.__doc__ = """What was measured.

estimates: list of diagnostics.Estimate, means over rollouts.
errors: standard errors of their cosines over rollouts, NaN for one rollout.
weights: names of the weights, in the order of an Estimate's `cosines`; the last is "encoder" if one is trained.
streams: number of streams that were measured.
shape: (rollouts, T, steps of history before each, B).
known: share of the measured steps whose episode began within what is kept.
below: name of the Estimate that cuts off the encoder's gradient as the run does; None if none does.
"""


def measure(run, steps, rollouts, seed):
    """Trains a restored run on, in memory alone, and measures its gradients on the way.

    The run learns at `train.learning_rate`, that of its start: at its end the schedule may be at 0, and nothing stale.
    When rollouts of K steps are kept, each of the next ones is measured before the agent learns from it.

    Args:
      run: RunFolder; its configuration must be loaded.
      steps: K, rounded up to whole rollouts for the exact gradient.
      rollouts: number of rollouts that are measured.
      seed: of environment and actions.

    Returns:
      Worth.

    Raises:
      UsageError: an agent that learns at every step, settings that do not fit, or an update that is not finite.
    """
    name = config.value("agent.name", "r2ac")
    kind = building.AGENTS[name][0] if name in building.AGENTS else RolloutAgent
    if not issubclass(kind, RolloutAgent):
        raise UsageError(f"{run.path}: worth measures agents that learn from rollouts, r2ac and ppo; this is {name!r}")
    options = building.training()
    options = dataclasses.replace(options, seed=seed, final_learning_rate=options.learning_rate)
    parts = setup.make(run, options, resume=True)
    try:
        _restore(run, parts)
        return _Measurement(parts.agent, options.rollout_length, steps).run(parts.runner, rollouts)
    finally:
        parts.runner.close()


def _restore(run, parts):
    checkpoints.Checkpoints(run, checkpoints.Counters(), parts.agent, parts.runner.state).restore()
    if not parts.runner.keeps_streams:  # they begin new episodes
        parts.agent.reset_carry()


class _Measurement:
    """Measures an agent on its rollouts of `length` steps, with `steps` before them."""

    def __init__(self, agent, length, steps):
        self._agent, self._length, self._steps = agent, length, steps
        count = -(-steps // length)
        frame = sum(s.shape.num_elements() * s.dtype.size for s in tf.nest.flatten(agent.collect_data_spec))
        try:
            fits_memory(f"--steps {steps}", 2 * frame * agent.streams.count * (count + 1) * length)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._kept = collections.deque(maxlen=count)
        self._chunk = getattr(agent.config, "chunk", length)
        self._train = tf.function(agent.train, autograph=False)
        self._encode = tf.function(self._encoded, autograph=False)
        self._cotangents = tf.function(agent.core_cotangents, autograph=False)
        self._pull = tf.function(self._encoder_gradient, autograph=False)
        self._worth = GradientWorth(*_recurrence(agent.network))
        self._known = []

    def run(self, runner, rollouts):
        """The Worth of `rollouts` rollouts."""
        found, agent = [], self._agent
        total = self._kept.maxlen + rollouts
        with tqdm(total=total, unit=" rollouts", mininterval=0.5, disable=None) as bar:
            for _ in range(total):
                carry = tf.nest.map_structure(tf.convert_to_tensor, agent.carry)
                rollout = runner.collect()
                if len(self._kept) == self._kept.maxlen:
                    found.append(self._measured(rollout, carry))
                if not np.isfinite(self._train(rollout).loss):
                    raise UsageError("the run diverges: the loss is not finite")
                self._kept.append((rollout, agent.network.state_of(carry)))
                bar.update()
        cosines = np.array([[estimate.cosine for estimate in estimates] for estimates in found])
        errors = np.full(cosines.shape[1], np.nan)
        if rollouts > 1:
            errors = cosines.std(axis=0, ddof=1) / np.sqrt(rollouts)
        streams = agent.streams.count
        return Worth(
            estimates=mean_estimates(found),
            errors=errors.tolist(),
            weights=(*self._worth.names, *(["encoder"] if agent.network.encoder_variables else [])),
            streams=min(streams, STREAMS),
            shape=(rollouts, self._length, self._kept.maxlen * self._length, streams),
            known=float(np.mean(self._known)),
            below=self._below(),
        )

    def _below(self):
        network = self._agent.network
        gradients = set(getattr(network.recurrent_core, "gradients", ["tbptt"]))
        if not network.encoder_variables or gradients > {"instant"}:  # layers that cut it off in two places
            return None
        return "tbptt_1" if gradients == {"instant"} else f"tbptt_chunks_{self._chunk}"

    def _measured(self, rollout, carry):
        """Estimates on a rollout, `carry` being the agent's before it."""
        encoded = [self._encode(r.observation, r.step_type) for r, _ in (*self._kept, (rollout, None))]
        inputs = tuple(tf.concat(part, axis=1) for part in zip(*encoded, strict=True))
        states = self._worth.states(inputs, self._kept[0][1])
        past = inputs[1].shape[1] - rollout.step_type.shape[1] + 1
        fresh = tf.nest.map_structure(lambda x: x[:, past], states)
        cotangents = self._cotangents(rollout, fresh)
        carried = {}
        if carry[0].has_traces:
            traced = tuple(own._replace(state=new.state) for own, new in zip(carry, fresh, strict=True))
            own = self._cotangents(rollout, carry)
            carried = {"rtrl": (traced, cotangents), "rtrl_carried_state": (carry, own)}
        begun = tf.math.cumsum(tf.cast(inputs[1], tf.int32), axis=1)[:, past:] > 0
        self._known.append(float(tf.reduce_mean(tf.cast(begun, tf.float32))))
        rollouts = [r for r, _ in self._kept] + [rollout]
        below = functools.partial(self._encoder_gradients, rollouts) if self._agent.network.encoder_variables else None
        return self._worth.measure(
            inputs, states, cotangents, steps=self._steps, carried=carried, chunk=self._chunk, below=below
        )

    def _encoder_gradients(self, rollouts, at_features):
        """Gradients [E, B, Q] of the encoder's weights, from dL / d features [E, B, H + T, D] of the rollouts."""
        count, total = at_features.shape[1], 0
        for rollout, part in zip(rollouts, np.split(at_features, len(rollouts), axis=2), strict=True):
            streams = (
                tf.nest.map_structure(lambda x, b=b: x[b : b + 1], (rollout.observation, rollout.step_type))
                for b in range(count)
            )
            total += np.stack([self._pull(*stream, part[:, b]) for b, stream in enumerate(streams)], axis=1)
        return total

    def _encoder_gradient(self, observation, step_type, at_features):
        """[E, Q] of one stream [1, T + 1, ...], from [E, T, D]."""
        weights = self._agent.network.encoder_variables
        with tf.GradientTape(persistent=True) as tape:
            features, _ = self._encoded(observation, step_type)
        rows = [
            tape.gradient(features, weights, at[tf.newaxis], unconnected_gradients=tf.UnconnectedGradients.ZERO)
            for at in tf.unstack(at_features)
        ]
        return tf.stack([tf.concat([tf.reshape(part, [-1]) for part in row], 0) for row in rows])

    def _encoded(self, observation, step_type):
        reset = tf.equal(step_type, ts.StepType.FIRST)
        return self._agent.network.encode(observation, reset)[:, :-1], reset[:, :-1]


def _recurrence(network):
    """The core as `GradientWorth` takes it: its function, and the weights that feel a truncation, by name."""
    core = network.recurrent_core
    if not isinstance(core, RTRLCore):
        return lambda inputs, carry: core(*inputs, carry), {v.name: v for v in core.trainable_variables}

    def recur(layer, x, carry, reset, mask, traces):
        return layer.recur(x, carry, reset, mask, traces, gradient="rtrl")  # exact inside the call in any mode

    def unroll(inputs, carry):
        y, carry = core.layer.unroll(inputs[0], carry, inputs[1], recur=recur)
        return y, tuple(carry)

    layers = [layer for layer in core.layer._flatten_layers() if isinstance(layer, RTRL)]
    several = len(layers) > 1
    return unroll, {
        f"{i}/{name}" if several else name: weight
        for i, layer in enumerate(layers, 1)
        for name, weight in layer.recurrent_weights().items()
    }


# What is said of it.


def label(estimate):
    """The name of an estimate in words."""
    if estimate.steps is not None:
        return f"TBPTT({estimate.steps}){', instant' if estimate.steps == 1 else ''}"
    if estimate.name.startswith("tbptt_chunks_"):
        return f"TBPTT in the run's chunks of {estimate.name.rpartition('_')[2]}"
    return _LABELS[estimate.name]


def sentence(worth):
    """One sentence: how far back the gradient reaches."""
    if np.isnan(worth.estimates[0].cosine):  # the exact one's with itself
        return (
            f"How far back the gradient reaches cannot be said: in at least one of {worth.shape[0]} rollouts the exact "
            "gradient is zero, and nothing has a cosine with it."
        )
    cosines = {e.steps: f"{e.cosine:.3f}" for e in worth.estimates if e.steps is not None}
    reached, longest = reach(worth.estimates), max(cosines)
    if reached is None:
        return (
            f"This task's gradient reaches back more than {longest} steps: cut off after {longest} it has cosine "
            f"{cosines[longest]} with the exact one."
        )
    steps = "1 step" if reached == 1 else f"{reached} steps"
    shorter = f", cut off after {reached // 2} {cosines[reached // 2]}" if reached > 1 else ""
    return (
        f"This task's gradient reaches back about {steps}: cut off after {reached} it has cosine {cosines[reached]} "
        f"with the exact one{shorter}."
    )


def by_weight(worth):
    """How far back the gradient of each weight alone reaches, in one line."""
    longest = max(e.steps for e in worth.estimates if e.steps is not None)
    none = [np.isnan(cosine) for cosine in worth.estimates[0].cosines]
    parts = [
        f"{name} {'unknown (zero gradient)' if none[i] else reach(worth.estimates, i) or f'more than {longest}'}"
        for i, name in enumerate(worth.weights)
    ]
    return f"Of each weight alone, in steps: {', '.join(parts)}."


def of_encoder(worth):
    """One sentence about the encoder's gradient; None if no estimate is the run's, or its gradient is zero."""
    own = next((estimate for estimate in worth.estimates if estimate.name == worth.below), None)
    if own is None or np.isnan(own.cosines[-1]):
        return None
    cut = "at each step" if own.steps == 1 else f"at the run's chunks of {own.name.rpartition('_')[2]}"
    return (
        f"Traces do not reach into the encoder: cut off {cut}, its gradient has cosine {own.cosines[-1]:.3f} with its "
        "exact one."
    )


def about(worth):
    """What was measured, in one line."""
    rollouts, length, past, streams = worth.shape
    return (
        f"{rollouts} rollouts of {length} steps, {worth.streams} of {streams} streams, {past} steps of history before "
        f"each; {100 * worth.known:.0f} % of the steps have their episode's start among what is kept"
    )


def table(worth):
    """The table, in columns for a screen."""
    rows = [("gradient", "cosine", "norm ratio", "noise", "difference", *worth.weights)]
    for estimate, error in zip(worth.estimates, worth.errors, strict=True):
        cosine = f"{estimate.cosine:.4f}" + ("" if np.isnan(error) else f" ± {error:.4f}")
        figures = [f"{x:.3g}" for x in (estimate.norm_ratio, estimate.noise, estimate.difference)]
        cosines = ("-" if np.isnan(x) else f"{x:.3f}" for x in estimate.cosines)
        rows.append((label(estimate), cosine, *figures, *cosines))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def write(run, worth, title):
    """Writes worth.csv and worth.png into the run's folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("cosine", "cosine_error", "norm_ratio", "noise", "difference")
    writer.writerow(["gradient", "steps", *columns, *(f"cosine_{name}" for name in worth.weights)])
    for e, error in zip(worth.estimates, worth.errors, strict=True):
        figures = (e.cosine, error, e.norm_ratio, e.noise, e.difference, *e.cosines)
        writer.writerow([e.name, e.steps or "", *("" if np.isnan(x) else f"{x:.6g}" for x in figures)])
    write_text(run.worth, text.getvalue())
    _plot(run, worth, title)


def _plot(run, worth, title):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    truncated = [(e, error) for e, error in zip(worth.estimates, worth.errors, strict=True) if e.steps is not None]
    others = [e for e in worth.estimates if e.steps is None and e.name != "exact"]
    steps = [e.steps for e, _ in truncated]
    for axes, name in zip(figure.subplots(1, 2), ("cosine", "norm_ratio"), strict=True):
        errors = [0 if np.isnan(error) or name != "cosine" else error for _, error in truncated]
        axes.errorbar(steps, [getattr(e, name) for e, _ in truncated], errors, marker="o", color="C0", label="TBPTT(k)")
        for i, estimate in enumerate(others, 1):
            axes.axhline(getattr(estimate, name), color=f"C{i}", linestyle="--", label=label(estimate))
        axes.axhline(REACHED if name == "cosine" else 1, color="gray", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set(
            xlabel="k, steps that TBPTT(k) reaches back", ylabel=f"{name.replace('_', ' ')} with the exact gradient"
        )
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(title)
    with replacing(run.worth_figure) as temporary:
        figure.savefig(temporary, dpi=120)
