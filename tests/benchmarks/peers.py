"""Gradients of the peers' step-by-step RTRL, found in a process that has their framework."""

import importlib

import numpy as np

from benchmarks.common import Unavailable


class Peer:
    """Holds `gradients` of a framework. Raises Unavailable if it is not installed."""

    def __init__(self, framework):
        try:
            importlib.import_module(framework)
        except ImportError as error:
            raise Unavailable(str(error)) from error
        self.gradients = {"torch": _of_torch, "jax": _of_jax}[framework]


def _of_torch(arrays):
    """Gradients of sum(y * cotangents) over two chunks in a row, of the per-step eLSTM; names as in keras_rtrl."""
    import torch

    from benchmarks.speed.torch_steps import PerStepELSTM

    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    inputs, width = arrays["kernel"].shape
    core = PerStepELSTM(inputs, width // 2).to(arrays["kernel"].dtype)
    with torch.no_grad():
        for gate, kernel in zip(core.GATES, arrays["kernel"].chunk(2, dim=1), strict=True):
            core.kernels[gate].copy_(kernel.T)
            core.w[gate].copy_(arrays[f"w_{gate}"])
            core.b[gate].copy_(arrays[f"b_{gate}"])
        core.gate.weight.copy_(torch.cat([arrays["output_kernel"], arrays["output_recurrent_kernel"]]).T)
        core.gate.bias.copy_(arrays["output_bias"])
    for x, e in zip(arrays["x"], arrays["cotangents"], strict=True):
        torch.sum(core(x) * e).backward()
        core.finish_backward()
    of_gate = core.gate.weight.grad.T
    found = {
        "kernel": torch.cat([core.kernels[gate].grad.T for gate in core.GATES], dim=1),
        "output_kernel": of_gate[:inputs],
        "output_recurrent_kernel": of_gate[inputs:],
        "output_bias": core.gate.bias.grad,
    }
    for gate in core.GATES:
        found |= {f"w_{gate}": core.w[gate].grad, f"b_{gate}": core.b[gate].grad}
    return {name: value.tolist() for name, value in found.items()}


def _of_jax(arrays):
    """Gradients of sum(y * cotangents) over two chunks in a row, of the per-step RTU; names as in keras_rtrl."""
    import jax
    import jax.numpy as jnp

    from benchmarks.speed import jax_steps

    w1, w2 = np.split(arrays["kernel"], 2, axis=1)
    params = {"nu": arrays["nu"], "vartheta": arrays["vartheta"], "w1": w1, "w2": w2}
    params = jax.tree.map(jnp.asarray, params)
    batch, inputs = arrays["x"].shape[1], arrays["x"].shape[3]
    carry = jax_steps.zero_carry(batch, inputs, w1.shape[1], w1.dtype)

    def weighted(params, carry, x, e):
        carry, y = jax_steps.chunk(params, carry, jnp.swapaxes(x, 0, 1))
        return jnp.sum(jnp.swapaxes(y, 0, 1) * e), carry

    total = jax.tree.map(jnp.zeros_like, params)
    for x, e in zip(arrays["x"], arrays["cotangents"], strict=True):
        found, carry = jax.grad(weighted, has_aux=True)(params, carry, x, e)
        total = jax.tree.map(jnp.add, total, found)
    found = {
        "kernel": np.concatenate([total["w1"], total["w2"]], axis=1),
        "nu": total["nu"],
        "vartheta": total["vartheta"],
    }
    return {name: value.tolist() for name, value in found.items()}
