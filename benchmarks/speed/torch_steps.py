"""PyTorch's contestants: nn.LSTM by BPTT, and the eLSTM by RTRL step by step.

The second is the first paper's way, in the layout of its released code: the learner's forward pass leaves the
gradient with respect to every state, and a loop over the steps then advances every trace and contracts it.
"""

from functools import partial

import torch

from benchmarks.speed.contestants import LEARNING_RATE, OUTPUTS


class LSTM(torch.nn.Module):
    """nn.LSTM whose state goes from call to call, cut off from the gradient in between."""

    def __init__(self, inputs, units):
        super().__init__()
        self.core = torch.nn.LSTM(inputs, units, batch_first=True)
        self.state = None

    def forward(self, x):
        y, state = self.core(x, self.state)
        self.state = tuple(s.detach() for s in state)
        return y

    def finish_backward(self):
        """Nothing: backward() has found all gradients."""


class PerStepELSTM(torch.nn.Module):
    """eLSTM with traces [B, N, D] for each gate; docs/rtrl-math.md, sections 2 and 4."""

    GATES = ("f", "z")

    def __init__(self, inputs, units):
        super().__init__()
        self.carried = None

        def fixed(*shape):
            return torch.nn.Parameter(0.1 * torch.randn(*shape), requires_grad=False)

        self.kernels = torch.nn.ParameterDict({gate: fixed(units, inputs) for gate in self.GATES})
        self.w = torch.nn.ParameterDict({gate: fixed(units) for gate in self.GATES})
        self.b = torch.nn.ParameterDict({gate: fixed(units) for gate in self.GATES})
        self.gate = torch.nn.Linear(inputs + units, units)

    def forward(self, x):
        """Outputs [B, T, N] of inputs [B, T, D]."""
        x = x.transpose(0, 1).contiguous()  # [T, B, D]
        kernels, w, b = self.kernels, self.w, self.b
        if self.carried is None:
            zeros = x.new_zeros((x.shape[1], len(w["f"])))
            of_kernels = {gate: x.new_zeros((*zeros.shape, x.shape[2])) for gate in self.GATES}
            self.carried = zeros, of_kernels, dict.fromkeys(self.GATES, zeros), dict.fromkeys(self.GATES, zeros)
        pre = torch.nn.functional.linear(x, torch.cat([kernels[gate] for gate in self.GATES]))
        steps = []
        c = self.carried[0]
        for u_f, u_z in zip(*pre.chunk(2, dim=-1), strict=True):
            f = torch.sigmoid(u_f + w["f"] * c + b["f"])
            z = torch.tanh(u_z + w["z"] * c + b["z"])
            previous, c = c, f * c + (1 - f) * z
            steps.append((previous, f, z, c))
        states = torch.stack([c for *_, c in steps]).requires_grad_()  # backward() stops here
        self.pending = x, steps, states
        y = torch.sigmoid(self.gate(torch.cat([x, states], dim=-1))) * states
        return y.transpose(0, 1)

    @torch.no_grad()
    def finish_backward(self):
        """Gradients of what RTRL trains, and the traces after the chunk; call it after backward()."""
        x, steps, states = self.pending
        _, S, r_w, r_b = self.carried
        w = self.w
        for parameters in (self.kernels, self.w, self.b):
            for parameter in parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        for x_t, e, (previous, f, z, _) in zip(x, states.grad, steps, strict=True):
            a = {"f": (previous - z) * f * (1 - f), "z": (1 - f) * (1 - z * z)}
            J = f + w["f"] * a["f"] + w["z"] * a["z"]
            S = {g: J[:, :, None] * S[g] + torch.bmm(a[g][:, :, None], x_t[:, None]) for g in self.GATES}
            r_w = {g: J * r_w[g] + a[g] * previous for g in self.GATES}
            r_b = {g: J * r_b[g] + a[g] for g in self.GATES}
            for g in self.GATES:
                self.kernels[g].grad += (e[:, :, None] * S[g]).sum(0)
                self.w[g].grad += (e * r_w[g]).sum(0)
                self.b[g].grad += (e * r_b[g]).sum(0)
        self.carried = steps[-1][-1], S, r_w, r_b


def _training(core_type, size):
    torch.manual_seed(0)
    core = core_type(size.inputs, size.units)
    head = torch.nn.Linear(size.units, OUTPUTS)
    optimizer = torch.optim.RMSprop([*core.parameters(), *head.parameters()], LEARNING_RATE, alpha=0.9, eps=1e-7)
    x = torch.randn(size.batch, size.steps, size.inputs)
    target = torch.randn(size.batch, size.steps, OUTPUTS)

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = torch.mean((head(core(x)) - target) ** 2)
        loss.backward()
        core.finish_backward()
        optimizer.step()
        return loss.item()

    return step


STEPS = {"torch_lstm": partial(_training, LSTM), "torch_elstm": partial(_training, PerStepELSTM)}


def _limit_gemm(size):
    a, b, out = (torch.randn(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def _limit_copy(elements):
    source = torch.randn(elements)
    target = source.clone()
    return lambda: target.copy_(source)


def _limit_trace(batch, steps, inputs, width):
    x, a, out = torch.randn(batch, steps, inputs), torch.randn(batch, steps, width), torch.zeros(batch, inputs, width)
    return lambda: torch.bmm(x.transpose(1, 2), a, out=out)


LIMITS = {"gemm": _limit_gemm, "copy": _limit_copy, "trace": _limit_trace}


def start():
    """Starts the runtime, so that it is part of no contestant's memory."""
    torch.ones(8, 8).mm(torch.ones(8, 8))
