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
    autodiff_derivatives,
    carry_shapes,
    chunked,
    native,
    reference,
    streaming,
    zero_carry,
)
from keras_rtrl.engine.carry import dense, matvec


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
        reset[0] = False  # one stream's history reaches back to the start
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


def check_derivatives(case):
    """The closed forms of J, a and v, and the declared rotations, equal automatic differentiation of phi."""
    cell = case.cell
    rng = np.random.default_rng(case.seed + 1)
    shape = (5, cell.units)
    state = tuple(tf.constant(rng.normal(size=shape)) for _ in range(cell.components))
    u = {gate: tf.constant(rng.normal(size=shape)) for gate in cell.gates}
    found = autodiff_derivatives(cell, state, u, case.rho)
    closed = cell.derivatives(state, u, cell.coefficients(case.rho))
    like = state[0]
    if closed is not None:
        _close("J, closed form against automatic differentiation", dense(closed.J, like), dense(found.J, like), 1e-10)
        for gate, value in closed.a.items():
            _close(f"a of gate {gate!r}", dense(value, like), dense(found.a[gate], like), 1e-10)
        for name, value in closed.v.items():
            _close(f"v of parameter {name!r}", dense(value, like), dense(found.v[name], like), 1e-10)
        _require(set(closed.v) == set(cell.unit_names), "derivatives must give v for every per-unit parameter")
        _require(
            set(cell.stored_gates) <= set(closed.a), "derivatives must give a for every gate whose trace is stored"
        )
    for gate, (source, rotation) in cell.trace_rotations.items():
        turned = dense(matvec(rotation, dense(found.a[source], like)), like)
        _close(f"a of gate {gate!r} as its declared rotation of {source!r}", turned, dense(found.a[gate], like), 1e-10)


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
    _close("states", states, expected, 1e-10)
    for name, got, want in zip(Carry._fields, carry, steps[-1], strict=True):
        _close(f"carry {name} after the chunk", got, want, 1e-10)
    _close("gradient of kernel", d_kernel, wanted["kernel"], 1e-10)
    for name, got in zip(names, d_rho, strict=True):
        _close(f"gradient of {name}", got, wanted[name], 1e-10)
    with tf.GradientTape() as tape:
        tape.watch(case.x)
        loss = tf.reduce_sum(tf.sin(case.bptt_states(case.kernel, case.rho, case.x, case.carry.state)) * case.e)
    _close("gradient of x", d_x, tape.gradient(loss, case.x), 1e-10)


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
            _close(f"summed gradient or carry, {where}", a, b, 1e-10)


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
        _close(f"RTRL gradient of {name} against BPTT through the whole history", got, want, 1e-8)
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
        _close(
            f"RTRL gradient of {name} against finite differences",
            tf.reduce_sum(tf.nest.flatten(rtrl)[which] * direction),
            slope,
            1e-5,
        )
    for kind, other in (("tbptt", truncated), ("instant", instant)):
        for name, got, want in zip(names, tf.nest.flatten(other), tf.nest.flatten(bptt), strict=True):
            apart = float(tf.norm(got - want) / tf.norm(want))
            _require(
                apart > 1e-2, f"{kind} gradient of {name} differs from BPTT by {apart:.1e} only: this proves nothing"
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
            _close(f"gradient={kind!r} against truncated BPTT", got, want, 1e-10)


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
            _require(none == (None,) * 3, f"gradient={kind!r}: a gradient reaches the carried state or traces")
            return tape.gradient(loss, case.kernel), tape.gradient(disturbed, case.kernel)

        plain, disturbed = mode(run)(case.x, case.reset, case.mask)
        _close(f"gradient={kind!r}: kernel gradient with a cotangent on the traces", disturbed, plain, 1e-12)


def check_streams(case):
    """Traces and states of one stream never depend on another (point 5)."""
    _, together = case.run(case.x, case.carry, case.reset, case.mask)
    for b in range(case.batch):
        row = slice(b, b + 1)
        carry = Carry(*(value[row] for value in case.carry))
        _, alone = case.run(case.x[row], carry, case.reset[row], case.mask[row])
        for name, got, want in zip(Carry._fields, alone, together, strict=True):
            _close(f"{name} of stream {b} alone against in a batch", got, want[row], 1e-12)


def check_output(case):
    """The declarations fit the contract, the output is as wide as it says, the configuration makes the same cell."""
    cell = case.cell
    cell.check()
    w = {p.name: p.initializer(p.shape, "float64") for p in cell.output_parameters(case.input_dim)}
    y = cell.output(case.x, tuple(tf.unstack(case.e, axis=-1)), w)
    wanted = (case.batch, case.steps, cell.output_size)
    _require(tuple(y.shape) == wanted, f"output has shape {tuple(y.shape)} where output_size says {wanted}")
    try:
        again = type(cell).from_config(cell.get_config())
    except TypeError as error:
        raise AssertionError(f"from_config(get_config()) fails: {error}") from error
    _require(again.get_config() == cell.get_config(), "from_config(get_config()) has another configuration")


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
                _close(f"{name}: {what} by the native op in {dtype}", found[what], want, rtol)


PROOFS = (check_chunk, check_splits, check_history, check_truncations, check_carry_is_a_value)


def check_rtrl_cell(cell, seed=0):
    """Proves exact RTRL of a cell: every proof of this module, eagerly, in float64, and its native op if it has one.

    Args:
      cell: an `RTRLCell`.
      seed: of the random parameters and sequences.

    Raises:
      AssertionError: names the first thing that is wrong.
    """
    case = Case(cell, seed)
    check_output(case)
    check_derivatives(case)
    for proof in PROOFS:
        proof(case)
    check_streams(case)
    if native.why_not(cell, "float64") is None:
        for dtype in NATIVE_RTOL:
            check_native(case, dtype)


def _close(what, got, want, rtol):
    got, want = np.asarray(got), np.asarray(want)
    scale = max(np.abs(want).max(initial=0.0), 1e-300)
    worst = np.abs(got - want).max(initial=0.0) / scale
    _require(worst <= rtol, f"{what} is off by {worst:.1e} of its largest entry; {rtol:.0e} is allowed")


def _require(condition, message):
    if not condition:
        raise AssertionError(message)
