"""The same algorithm step by step in JAX, jitted: the eLSTM's trace of each step, as one writes it."""

import os
import statistics
import time

import numpy as np


def load():
    """JAX with a GPU, or None."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax

        return jax if jax.default_backend() == "gpu" else None
    except ImportError:
        return None


def _functions(jax):
    jnp = jax.numpy

    def local(rho, s, u):
        """The next state, J, and a and v [B, 2, N], [B, 4, N]; gates f, z (docs/rtrl-math.md, section 4)."""
        w_f, w_z, b_f, b_z = rho
        f, z = jax.nn.sigmoid(u[:, 0] + w_f * s + b_f), jnp.tanh(u[:, 1] + w_z * s + b_z)
        a_f, a_z = (s - z) * f * (1 - f), (1 - f) * (1 - z * z)
        J = f + w_z * a_z + w_f * a_f
        return f * s + (1 - f) * z, J, jnp.stack([a_f, a_z], 1), jnp.stack([a_f * s, a_z * s, a_f, a_z], 1)

    def advance(carry, rho, kernel, x):
        s, S, r = carry
        s, J, a, v = local(rho, s, jnp.einsum("bd,dgn->bgn", x, kernel, precision="highest"))
        S = J[:, None, None] * S + x[:, :, None, None] * a[:, None]
        return s, S, J[:, None] * r + v

    def contract(e, S, r):
        return jnp.einsum("bn,bdgn->dgn", e, S, precision="highest"), (e[:, None] * r).sum(0)

    def stream(carry, rho, kernel, x, e):
        carry = advance(carry, rho, kernel, x)
        return carry, contract(e, *carry[1:])

    def chunk(carry, rho, kernel, x, e):
        def step(carry_and_sums, now):
            carry, sums = carry_and_sums
            carry = advance(carry, rho, kernel, now[0])
            return (carry, jax.tree.map(jnp.add, sums, contract(now[1], *carry[1:]))), None

        sums = jnp.zeros_like(kernel), jnp.zeros((4, kernel.shape[-1]), kernel.dtype)
        return jax.lax.scan(step, (carry, sums), (jnp.moveaxis(x, 1, 0), jnp.moveaxis(e, 1, 0)))[0]

    return jax.jit(stream, donate_argnums=0), jax.jit(chunk, donate_argnums=0)


def measure(jax, batch, steps, inputs, units, repeats=20):
    """Median seconds of the streaming step (step, trace update and gradients) if steps is 1, else of the chunk."""
    stream, chunk = _functions(jax)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jax.device_put(rng.normal(0, 0.1, shape).astype(np.float32))

    rho, kernel = draw(4, units), draw(inputs, 2, units)
    # S made on the device: it may be large.
    zeros = jax.numpy.zeros((batch, inputs, 2, units)), jax.numpy.zeros((batch, 4, units))
    carry = (draw(batch, units), *zeros)
    span = () if steps == 1 else (steps,)
    x, e = draw(batch, *span, inputs), draw(batch, *span, units)
    function, seconds = stream if steps == 1 else chunk, []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        carry, sums = function(carry, rho, kernel, x, e)
        jax.block_until_ready((carry, sums))
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds[3:]), "repeats": repeats}
