"""What proves a cell and the engine on it (rtrl-math.md, section 10), each proof a function that raises AssertionError.

All run in float64 on random parameters, a random carry or real history, and resets and masks inside chunks. The oracle
is back-propagation through the whole history by TensorFlow's own differentiation of `cell.phi`, which shares no code
with the engine.
"""

import functools
import itertools
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from keras_rtrl.engine import (
    Carry,
    carry_shapes,
    chunked,
    reference,
    streaming,
    zero_carry,
)


def eager(function):
    """Runs `function` as it is."""
    return function


def graph(function):
    """Runs `function` in a tf.function that knows neither B nor T."""
    return _compiled(function, jit_compile=False)


def xla(function):
    """Runs `function` compiled by XLA."""
    return _compiled(function, jit_compile=True)


def _compiled(function, jit_compile):
    def call(*tensors):
        free = [tf.TensorSpec((None, None, *t.shape[2:]), t.dtype) for t in tensors]
        return tf.function(function, input_signature=free, jit_compile=jit_compile)(*tensors)

    return call


MODES = {"eager": eager, "graph": graph, "xla": xla}


@dataclass
class Case:
    """A cell with random float64 parameters, a random carry, and a sequence with resets and masked steps."""

    cell: object
    seed: int = 0
    batch: int = 3
    steps: int = 8
    input_dim: int = 4
    kernel: tf.Tensor = field(init=False)
    rho: dict = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        cell, n, m = self.cell, self.cell.units, self.cell.components

        def normal(*shape):
            return tf.constant(rng.normal(size=shape))

        self.kernel = 0.7 * normal(self.input_dim, len(cell.gates) * n)
        tf.random.set_seed(self.seed)
        self.rho = {p.name: p.initializer(p.shape, "float64") + 0.3 * normal(*p.shape) for p in cell.unit_parameters()}
        self.x = normal(self.batch, self.steps, self.input_dim)
        self.e = normal(self.batch, self.steps, n, m)
        reset = rng.random((self.batch, self.steps)) < 0.15
        reset[:1] = False  # one stream's history reaches back to the start
        mask = rng.random((self.batch, self.steps)) > 0.15
        mask[:, -1] = True
        self.reset, self.mask = tf.constant(reset), tf.constant(mask)
        self.carry = Carry(*(normal(self.batch, *shape) for shape in carry_shapes(cell, self.input_dim)))

    @property
    def zero(self):
        return zero_carry(self.cell, self.batch, tf.float64, self.input_dim)

    def loss(self, states, e):
        """A loss that is not linear in the states (tuple of [B, T, N])."""
        return tf.reduce_sum(tf.sin(tf.stack(states, axis=-1)) * e)

    def run(self, x, carry, reset, mask, gradient="rtrl", kernel=None, rho=None):
        kernel = self.kernel if kernel is None else kernel
        return chunked.run(self.cell, kernel, self.rho if rho is None else rho, x, carry, reset, mask, gradient)

    def bptt_states(self, kernel, rho, x, state, through_time=True):
        """States [B, T, N, m] by plain TensorFlow, differentiable through all of the history, or inside each step."""
        cell, c, out = self.cell, self.cell.coefficients(rho), []
        s = tuple(tf.unstack(state, axis=-1))
        for t in range(x.shape[1]):
            s = s if through_time else tuple(tf.stop_gradient(v) for v in s)
            s = tuple(tf.where(self.reset[:, t, None], tf.zeros_like(v), v) for v in s)
            u = dict(zip(cell.gates, tf.split(x[:, t] @ kernel, len(cell.gates), axis=-1), strict=True))
            new = cell.phi(s, u, c)
            s = tuple(tf.where(self.mask[:, t, None], n, v) for n, v in zip(new, s, strict=True))
            out.append(tf.stack(s, axis=-1))
        return tf.stack(out, axis=1)


def check_chunk(case, mode=eager):
    """The chunk at once equals step by step: states, traces and every gradient (point 1)."""
    names = list(case.rho)

    def chunk(x, reset, mask):
        with tf.GradientTape() as tape:
            tape.watch((case.kernel, case.rho, x))
            states, carry = case.run(x, case.carry, reset, mask)
            loss = case.loss(states, case.e)
        d_kernel, d_rho, d_x = tape.gradient(loss, (case.kernel, case.rho, x))
        return tf.stack(states, axis=-1), tuple(carry), d_kernel, [d_rho[n] for n in names], d_x

    states, carry, d_kernel, d_rho, d_x = mode(chunk)(case.x, case.reset, case.mask)
    steps = reference.run(case.cell, case.kernel, case.rho, case.x, case.carry, case.reset, case.mask)
    expected = tf.stack([s.state for s in steps], axis=1)
    wanted = reference.gradients(case.cell, steps, tf.cos(expected) * case.e)
    close("states", states, expected, 1e-10)
    for name, got, want in zip(Carry._fields, carry, steps[-1], strict=True):
        close(f"carry {name} after the chunk", got, want, 1e-10)
    close("gradient of kernel", d_kernel, wanted["kernel"], 1e-10)
    for name, got in zip(names, d_rho, strict=True):
        close(f"gradient of {name}", got, wanted[name], 1e-10)
    with tf.GradientTape() as tape:
        tape.watch(case.x)
        loss = tf.reduce_sum(tf.sin(case.bptt_states(case.kernel, case.rho, case.x, case.carry.state)) * case.e)
    close("gradient of x", d_x, tape.gradient(loss, case.x), 1e-10)


def check_splits(case, mode=eager):
    """Any cut into chunks gives the same summed gradient and final carry, in one tape or several (point 2)."""

    def total(cuts, one_tape):
        def run(x, reset, mask):
            carry, sums, losses = case.carry, None, []
            edges = [0, *cuts, case.steps]
            with tf.GradientTape(persistent=True) as outer:
                outer.watch((case.kernel, case.rho))
                for lo, hi in itertools.pairwise(edges):
                    with tf.GradientTape() as inner:
                        inner.watch((case.kernel, case.rho))
                        states, carry = case.run(x[:, lo:hi], carry, reset[:, lo:hi], mask[:, lo:hi])
                        losses.append(case.loss(states, case.e[:, lo:hi]))
                    if not one_tape:
                        g = inner.gradient(losses[-1], (case.kernel, case.rho))
                        sums = g if sums is None else tf.nest.map_structure(tf.add, sums, g)
                whole = tf.add_n(losses)
            return (outer.gradient(whole, (case.kernel, case.rho)) if one_tape else sums), tuple(carry)

        return mode(run)(case.x, case.reset, case.mask)

    expected = total([], False)
    for cuts, one_tape in (([3], True), ([1, 2, 5], False)):
        where = f"cut at {cuts}, {'one tape' if one_tape else 'a tape each'}"
        got = total(cuts, one_tape)
        for a, b in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
            close(f"summed gradient or carry, {where}", a, b, 1e-10)


def check_history(case, mode=eager, last=3):
    """Loss on the last chunk alone: RTRL = BPTT through all history = finite differences; TBPTT is not (point 3)."""
    cut = case.steps - last
    start = case.zero._replace(state=case.carry.state)
    e = case.e[:, cut:]

    def gradient(kind):
        def run(x, reset, mask):
            carry = start
            for lo, hi in ((0, 1), (1, cut)):
                _, carry = case.run(x[:, lo:hi], carry, reset[:, lo:hi], mask[:, lo:hi])
            with tf.GradientTape() as tape:
                tape.watch((case.kernel, case.rho))
                states, _ = case.run(x[:, cut:], carry, reset[:, cut:], mask[:, cut:], kind)
                loss = case.loss(states, e)
            return tape.gradient(loss, (case.kernel, case.rho))

        return mode(run)(case.x, case.reset, case.mask)

    def loss(kernel, rho):
        return tf.reduce_sum(tf.sin(case.bptt_states(kernel, rho, case.x, start.state)[:, cut:]) * e)

    with tf.GradientTape() as tape:
        tape.watch((case.kernel, case.rho))
        value = loss(case.kernel, case.rho)
    bptt = tape.gradient(value, (case.kernel, case.rho))
    rtrl, truncated, instant = gradient("rtrl"), gradient("tbptt"), gradient("instant")
    names = ["kernel", *sorted(case.rho)]
    for name, got, want in zip(names, tf.nest.flatten(rtrl), tf.nest.flatten(bptt), strict=True):
        close(f"RTRL gradient of {name} against BPTT through the whole history", got, want, 1e-8)
    rng = np.random.default_rng(case.seed + 2)
    for which, name in enumerate(names):
        step = 1e-6
        flat = tf.nest.flatten((case.kernel, case.rho))
        direction = tf.constant(rng.normal(size=flat[which].shape))
        sides = []
        for sign in (1, -1):
            moved = list(flat)
            moved[which] = flat[which] + sign * step * direction
            sides.append(loss(*tf.nest.pack_sequence_as((case.kernel, case.rho), moved)))
        slope = (sides[0] - sides[1]) / (2 * step)
        close(
            f"RTRL gradient of {name} against finite differences",
            tf.reduce_sum(tf.nest.flatten(rtrl)[which] * direction),
            slope,
            1e-5,
        )
    for kind, other in (("tbptt", truncated), ("instant", instant)):
        for name, got, want in zip(names, tf.nest.flatten(other), tf.nest.flatten(bptt), strict=True):
            apart = float(tf.norm(got - want) / tf.norm(want))
            require(
                apart > 1e-2,
                f"the {kind} gradient of {name} differs from BPTT by {apart:.1e} only, so RTRL is not proved: take "
                "another seed, or more units (3 are enough)",
            )


def check_truncations(case, mode=eager):
    """The gradient "tbptt" is BPTT inside the chunk; "instant" is BPTT that stops at every step."""
    plain = Carry(case.carry.state)

    def gradient(kind):
        def run(x, reset, mask):
            with tf.GradientTape() as tape:
                tape.watch((case.kernel, case.rho, x))
                states, _ = case.run(x, plain, reset, mask, kind)
                loss = case.loss(states, case.e)
            return tape.gradient(loss, (case.kernel, case.rho, x))

        return tf.nest.flatten(mode(run)(case.x, case.reset, case.mask))

    for kind, through_time in (("tbptt", True), ("instant", False)):
        with tf.GradientTape() as tape:
            tape.watch((case.kernel, case.rho, case.x))
            states = case.bptt_states(case.kernel, case.rho, case.x, plain.state, through_time)
            loss = tf.reduce_sum(tf.sin(states) * case.e)
        exact = tf.nest.flatten(tape.gradient(loss, (case.kernel, case.rho, case.x)))
        for got, want in zip(gradient(kind), exact, strict=True):
            close(f"gradient={kind!r} against truncated BPTT", got, want, 1e-10)


def check_carry_is_a_value(case, mode=eager):
    """No gradient reaches a carry in any mode, and cotangents on returned traces are ignored."""
    for kind in chunked.GRADIENTS:

        def run(x, reset, mask, kind=kind):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch((case.kernel, tuple(case.carry)))
                states, carry = case.run(x, case.carry, reset, mask, kind)
                loss = case.loss(states, case.e)
                disturbed = loss + tf.reduce_sum(carry.S) + tf.reduce_sum(carry.r)
            none = tape.gradient(disturbed + tf.reduce_sum(carry.state), tuple(case.carry))
            require(none == (None,) * 3, f"gradient={kind!r}: a gradient reaches the carried state or traces")
            return tape.gradient(loss, case.kernel), tape.gradient(disturbed, case.kernel)

        plain, disturbed = mode(run)(case.x, case.reset, case.mask)
        close(f"gradient={kind!r}: kernel gradient with a cotangent on the traces", disturbed, plain, 1e-12)


def check_resets(case):
    """A reset leaves nothing of what was before it: what follows is what a run from zero gives (section 7)."""
    at = case.steps // 2
    reset = tf.constant(np.arange(case.steps) == at) & tf.ones_like(case.reset)
    mask = np.array(case.mask)
    mask[0, at] = False  # a reset on a masked step still resets
    x, e, mask = case.x, case.e[:, at:], tf.constant(mask)

    def run(lo, carry, reset):
        with tf.GradientTape() as tape:
            tape.watch((case.kernel, case.rho))
            states, carry = case.run(x[:, lo:], carry, reset, mask[:, lo:])
            states = tuple(s[:, at - lo :] for s in states)
            loss = case.loss(states, e)
        return {
            "state": tf.stack(states, axis=-1),
            **carry._asdict(),
            **_named(tape.gradient(loss, (case.kernel, case.rho))),
        }

    fresh = run(at, case.zero, None)
    for name, got in run(0, case.carry, reset).items():
        _missed("chunk", name, got, fresh[name])
    own = Carry(*(tf.Variable(value) for value in case.carry))
    one = Carry(*(tf.Variable(value) for value in case.zero))
    params, every = {"kernel": case.kernel, **case.rho}, tf.ones_like(case.reset[:, 0])
    for carry, now in ((own, every), (one, None)):
        _, pending = streaming.forward(case.cell, params, carry, x[:, 0], now)
        streaming.update(carry, pending, e[None, :, 0])
    for name, got, want in zip(Carry._fields, own, one, strict=True):
        _missed("streaming step", name, got, want)


def _named(gradients):
    kernel, rho = gradients
    return {f"gradient of {name}": value for name, value in {"kernel": kernel, **rho}.items()}


def _missed(form, name, got, want):
    close(f"missing reset: {name} after a reset, in the {form}, against a start from zero", got, want, 1e-10)


def check_broken_past(case, implementation="tf"):
    """A reset clears NaN and inf too: states, traces and gradients after it are those of a start from zero.

    They come in by the carry, by inputs before the reset, and by inputs of masked steps; the loss is on the steps from
    the reset on. In one chunk, and cut into chunks around the reset, one of them of one step.
    """
    at = case.steps // 2
    wrong = [np.nan, np.inf, -np.inf]
    rng = np.random.default_rng(case.seed)
    carry = Carry(
        *(tf.where(rng.random(value.shape) < 0.5, rng.choice(wrong, value.shape), value) for value in case.carry)
    )
    x, mask, reset = case.x.numpy(), case.mask.numpy(), np.zeros(case.reset.shape, bool)
    reset[:, at] = True
    mask[0, at] = False  # a reset on a masked step still resets
    x[:, : at - 1] = np.where(rng.random(x[:, : at - 1].shape) < 0.5, rng.choice(wrong, x[:, : at - 1].shape), 1.0)
    x[~mask] = np.nan
    x, mask, reset = map(tf.constant, (x, mask, reset))

    def run(cuts, carry):
        now, sums, states = carry, [], []
        for lo, hi in itertools.pairwise(cuts):
            with tf.GradientTape() as tape:
                tape.watch((case.kernel, case.rho))
                new, now = chunked.run(
                    case.cell, case.kernel, case.rho, x[:, lo:hi], now, reset[:, lo:hi], mask[:, lo:hi],
                    implementation=implementation,
                )  # fmt: skip
                if hi <= at:
                    continue
                new = tuple(s[:, max(at - lo, 0) :] for s in new)
                loss = case.loss(new, case.e[:, max(at, lo) : hi])
            states.append(tf.stack(new, axis=-1))
            sums.append(tape.gradient(loss, (case.kernel, case.rho)))
        summed = tf.nest.map_structure(lambda *parts: tf.add_n(parts), *sums)
        return {"states": tf.concat(states, axis=1), **now._asdict(), **_named(summed)}

    zero = case.zero
    fresh = run([at, case.steps], zero)
    for cuts in ([0, case.steps], [0, at - 2, at, at + 1, case.steps]):
        for name, got in run(cuts, carry).items():
            close(f"NaN and inf before a reset: {name} after it, cut at {cuts}", got, fresh[name], 1e-10)
    own, one = (Carry(*(tf.Variable(value) for value in c)) for c in (carry, zero))
    params = {"kernel": case.kernel, **case.rho}
    found = []
    for of, now in ((own, tf.ones_like(reset[:, 0])), (one, None)):
        _, pending = streaming.forward(case.cell, params, of, case.x[:, at], now, implementation=implementation)
        found.append({**streaming.update(of, pending, case.e[None, :, at]), **of._asdict()})
    for name, got in found[0].items():
        close(f"NaN and inf before a reset: {name} after it, in the streaming step", got, found[1][name], 1e-10)


def check_streams(case):
    """Traces and states of one stream never depend on another (point 5)."""
    _, together = case.run(case.x, case.carry, case.reset, case.mask)
    for b in range(case.batch):
        row = slice(b, b + 1)
        carry = Carry(*(value[row] for value in case.carry))
        _, alone = case.run(case.x[row], carry, case.reset[row], case.mask[row])
        for name, got, want in zip(Carry._fields, alone, together, strict=True):
            close(f"traces leak between streams: {name} of stream {b} alone against in a batch", got, want[row], 1e-12)


NATIVE_RTOL = {"float32": 1e-5, "float64": 1e-12}


def check_native(case, dtype="float64", gradient="rtrl", flags=True, traces=True):
    """The native op equals its twin in plain TensorFlow: chunk and streaming step, values and gradients (point 4).

    Args:
      case: a `Case`; its cell must have kernels.
      dtype: "float32" or "float64".
      gradient: the chunk's gradient mode.
      flags: whether there are resets and masked steps.
      traces: whether the carry has traces.
    """
    cell, rtol = case.cell, NATIVE_RTOL[dtype]
    cast = functools.partial(tf.cast, dtype=dtype)
    kernel, rho, x, e = tf.nest.map_structure(cast, (case.kernel, case.rho, case.x, case.e))
    carry = Carry(*map(cast, case.carry)) if traces else Carry(cast(case.carry.state))
    reset, mask = (case.reset, case.mask) if flags else (None, None)

    def chunk(implementation):
        with tf.GradientTape() as tape:
            tape.watch((kernel, rho, x))
            states, new = chunked.run(
                cell, kernel, rho, x, carry, reset, mask, gradient, traces, implementation=implementation
            )
            loss = tf.reduce_sum(tf.stack(states, axis=-1) * e)
        d_kernel, d_rho, d_x = tape.gradient(loss, (kernel, rho, x))
        return {"states": tf.stack(states), **new._asdict(), "dL/dW": d_kernel, **d_rho, "dL/dx": d_x}

    def step(implementation):
        own = Carry(*map(tf.Variable, carry))
        now = None if reset is None else reset[:, 0]
        params = {"kernel": kernel, **rho}
        state, pending = streaming.forward(cell, params, own, x[:, 0], now, implementation=implementation)
        gradients = streaming.update(own, pending, tf.stack([e[:, 0], -e[:, -1]]))
        return {"new state": state, **own._asdict(), **gradients}

    forms = {"chunk": chunk, "streaming": step} if traces else {"chunk": chunk}
    for name, form in forms.items():
        found, twin = form("native"), form("tf")
        for what, want in twin.items():
            if want is not None:
                close(f"{name}: {what} by the native op in {dtype}", found[what], want, rtol)


PROOFS = (check_chunk, check_splits, check_history, check_truncations, check_carry_is_a_value)


def close(what, got, want, rtol):
    """Raises AssertionError unless `got` equals `want` up to `rtol` of its largest entry."""
    got, want = np.asarray(got), np.asarray(want)
    require(got.shape == want.shape, f"{what} has shape {got.shape}, not {want.shape}")
    scale = max(float(np.abs(want).max(initial=0.0)), 1e-300)  # as floats: float32 has no 1e-300
    worst = float(np.abs(got - want).max(initial=0.0)) / scale  # NaN if either holds one, which is never within
    require(worst <= rtol, f"{what} is off by {worst:.1e} of its largest entry; {rtol:.0e} is allowed")


def require(condition, message):
    """Raises AssertionError with `message` unless `condition` holds."""
    if not condition:
        raise AssertionError(message)
