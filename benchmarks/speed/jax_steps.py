"""JAX's contestants: the linear RTU by RTRL step by step, and the streaming loops.

The first is the second paper's way: a scan over the steps whose derivative is replaced, at each, by that step's
cotangent times the traces; as in its released code, all four kernel traces are stored. The second are what the
project's own streaming form is compared with: one jitted scan, one RTRL gradient and one SGD update a step, the one
pair of traces that a linear RTU needs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.speed.contestants import LEARNING_RATE, OUTPUTS, STREAM_RATE, linear_rtu, streaming_problem


def _coefficients(nu, vartheta):
    """Of docs/rtrl-math.md, section 5; the last two are the derivatives that the traces need."""
    rate, theta = jnp.exp(nu), jnp.exp(vartheta)
    r = jnp.exp(-rate)
    gamma = jnp.sqrt(jnp.maximum(-jnp.expm1(-2 * rate), 1e-12))
    return r * jnp.cos(theta), r * jnp.sin(theta), gamma, rate, theta, rate * r**2 / gamma


def _advance(coefficients, state, x, kernels):
    """The new state (a, b) and the local derivatives with respect to nu and vartheta, each a pair."""
    g, p, gamma, rate, theta, d_gamma = coefficients
    a, b = state
    u = x @ kernels[0], x @ kernels[1]
    turned = g * a - p * b, g * b + p * a
    new = turned[0] + gamma * u[0], turned[1] + gamma * u[1]
    of_nu = d_gamma * u[0] - rate * turned[0], d_gamma * u[1] - rate * turned[1]
    return new, of_nu, (-theta * turned[1], theta * turned[0])


def _turn(coefficients, pair):
    g, p = coefficients[:2]
    return g * pair[0] - p * pair[1], g * pair[1] + p * pair[0]


def _plus(pair, other):
    return pair[0] + other[0], pair[1] + other[1]


def zero_carry(batch, inputs, units, dtype=jnp.float32):
    """State, traces of nu and vartheta, and of either kernel; each of two components."""

    def pair(*shape):  # separate arrays, since they are donated
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    vector, matrix = (batch, units), (batch, inputs, units)
    return pair(*vector), (pair(*vector), pair(*vector), pair(*matrix), pair(*matrix))


@jax.custom_vjp
def _rtu_step(params, carry, x):
    return _rtu_forward(params, carry, x)[0]


def _rtu_forward(params, carry, x):
    c = _coefficients(params["nu"], params["vartheta"])
    new, d_nu, d_vartheta = _advance(c, carry[0], x, (params["w1"], params["w2"]))
    driven = c[2] * x[:, :, None]
    local = d_nu, d_vartheta, (driven, 0.0), (0.0, driven)
    traces = tuple(_plus(_turn(c, trace), new) for trace, new in zip(carry[1], local, strict=True))
    return ((new, traces), new), (params, c[2], traces)


def _rtu_backward(residuals, cotangents):
    params, gamma, traces = residuals
    _, e = cotangents  # what comes through the carry is in the traces already

    def contract(trace, e):
        return jnp.sum(e[0] * trace[0] + e[1] * trace[1], 0)

    wide = tuple(e_i[:, None] for e_i in e)
    of_nu, of_vartheta, of_w1, of_w2 = traces
    gradients = {"nu": contract(of_nu, e), "vartheta": contract(of_vartheta, e)}
    gradients |= {"w1": contract(of_w1, wide), "w2": contract(of_w2, wide)}
    d_x = (gamma * e[0]) @ params["w1"].T + (gamma * e[1]) @ params["w2"].T
    return gradients, jax.tree.map(jnp.zeros_like, (e, traces)), d_x


_rtu_step.defvjp(_rtu_forward, _rtu_backward)


def chunk(params, carry, x):
    """Carry after the chunk, and outputs [T, B, 2 N] of inputs [T, B, D]."""
    carry, (a, b) = lax.scan(lambda carry, x_t: _rtu_step(params, carry, x_t), carry, x)
    return carry, jax.nn.relu(jnp.concatenate([a, b], axis=-1))


def _loss(params, carry, x, target):
    """Mean square of the head's errors over a chunk, and the carry after it."""
    carry, y = chunk(params["rtu"], carry, x)
    return jnp.mean((y @ params["head"]["kernel"] + params["head"]["bias"] - target) ** 2), carry


def _at_the_end(params, carry, x, target):
    """Loss, carry and gradients, taken of the whole scan: the traces of all its steps are kept for it."""
    (loss, carry), gradients = jax.value_and_grad(_loss, has_aux=True)(params, carry, x, target)
    return loss, carry, gradients


def _at_each_step(params, carry, x, target):
    """The same, each step's gradient being taken at that step."""

    def step(sums, now):
        carry, *sums = sums
        x_t, target_t = now
        loss, carry, gradients = _at_the_end(params, carry, x_t[None], target_t[None])
        return (carry, *jax.tree.map(jnp.add, tuple(sums), (loss, gradients))), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    (carry, *sums), _ = lax.scan(step, (carry, *zero), (x, target))
    loss, gradients = jax.tree.map(lambda value: value / len(x), tuple(sums))
    return loss, carry, gradients


def _training(differentiate, size):
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(0, size.units**-0.5, (2 * size.units, OUTPUTS)), "bias": np.zeros(OUTPUTS)}
    params = {"rtu": linear_rtu(rng, size.inputs, size.units), "head": head}
    params = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), params)
    squares = jax.tree.map(jnp.zeros_like, params)
    carry = zero_carry(size.batch, size.inputs, size.units)
    x = jnp.asarray(rng.normal(size=(size.steps, size.batch, size.inputs)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(size.steps, size.batch, OUTPUTS)), jnp.float32)

    def train(params, squares, carry, x, target):
        loss, carry, gradients = differentiate(params, carry, x, target)
        squares = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g * g, squares, gradients)
        params = jax.tree.map(lambda p, s, g: p - LEARNING_RATE * g / (jnp.sqrt(s) + 1e-7), params, squares, gradients)
        return params, squares, carry, loss

    train = jax.jit(train, donate_argnums=(0, 1, 2))

    def step():
        nonlocal params, squares, carry
        params, squares, carry, loss = train(params, squares, carry, x, target)
        return float(jax.block_until_ready((params, squares, carry, loss))[-1])

    return step


def _streaming_loop(carried):
    """One jitted loop; `carried`: the coefficients go through it instead of being made at each step."""

    def step(loop, now):
        params, c, state, of_nu, of_vartheta, S = loop
        x_t, target_t = now
        x_t = x_t[None]
        c = c if carried else _coefficients(params["nu"], params["vartheta"])
        new, d_nu, d_vartheta = _advance(c, state, x_t, (params["w1"], params["w2"]))
        of_nu = _plus(_turn(c, of_nu), d_nu)
        of_vartheta = _plus(_turn(c, of_vartheta), d_vartheta)
        S = _plus(_turn(c, S), (c[2] * x_t[:, :, None], 0.0))
        head, h = params["head"], jax.nn.relu(jnp.stack(new, axis=1))  # [2, N], [1, 2, N]
        error = jnp.sum(head * h, (1, 2)) - target_t
        e = jnp.where(h > 0, 2 * error * head, 0.0)
        a, b = e[:, 0], e[:, 1]
        wide_a, wide_b = a[:, None], b[:, None]
        gradients = {
            "nu": jnp.sum(a * of_nu[0] + b * of_nu[1], 0),
            "vartheta": jnp.sum(a * of_vartheta[0] + b * of_vartheta[1], 0),
            "w1": jnp.sum(wide_a * S[0] + wide_b * S[1], 0),
            "w2": jnp.sum(wide_b * S[0] - wide_a * S[1], 0),  # its trace is (-S[1], S[0])
            "head": jnp.sum(2 * error * h, 0),
        }
        params = jax.tree.map(lambda p, g: p - STREAM_RATE * g, params, gradients)
        c = _coefficients(params["nu"], params["vartheta"]) if carried else c
        return (params, c, new, of_nu, of_vartheta, S), error[0] ** 2

    def loop(params, state, x, target):
        first = params, _coefficients(params["nu"], params["vartheta"]), *state
        (params, _, *state), losses = lax.scan(step, first, (x, target))
        return params, tuple(state), losses

    return jax.jit(loop, donate_argnums=(0, 1))


def _streaming(carried, size, steps):
    params, x, target = (jax.tree.map(jnp.asarray, value) for value in streaming_problem(size, steps))
    state, (of_nu, of_vartheta, S, _) = zero_carry(1, size.inputs, size.units)
    carry = state, of_nu, of_vartheta, S
    loop = _streaming_loop(carried)

    def run():
        """Runs the loop once more from where it stopped; the losses of its steps."""
        nonlocal params, carry
        params, carry, losses = loop(params, carry, x, target)
        return np.asarray(losses)

    return run


STEPS = {"jax_rtu": partial(_training, _at_each_step), "jax_rtu_scan": partial(_training, _at_the_end)}
STREAMING = {"jax_stream": partial(_streaming, False), "jax_stream_carried": partial(_streaming, True)}


def start():
    """Starts the runtime, so that it is part of no contestant's memory."""
    jax.block_until_ready(jnp.ones((8, 8)) @ jnp.ones((8, 8)))
