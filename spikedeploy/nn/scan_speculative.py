"""The loop over time in few, wide operations, to its bits: what `method="speculative"` runs, with or without a reset, on any device.

Forward: verified chunks (see speculate.py). Backward: the states are known by then, and with them every reset, so what is left of
backpropagation through time is a linear recurrence, run in float64; all else is done for a block of time at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spikedeploy.nn.neuron import Neuron
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.speculate import resting, speculate
from spikedeploy.nn.surrogate import Surrogate

BLOCK = 1 << 16
"""Elements of a block of time: what is computed on the way then stays in the cache."""


def fires(neuron: Neuron, u: Tensor, threshold: Tensor, out: Tensor | None = None) -> Tensor:
    """H(u) in the threshold's dtype."""
    seen = u.to(threshold.dtype)
    compare = torch.gt if neuron.strict else torch.ge
    return compare(seen, threshold, out=torch.empty_like(seen) if out is None else out)


def charge(neuron: Neuron, u: Tensor, r: Tensor, x: Tensor, d: Tensor, threshold: Tensor, out: Tensor) -> Tensor:
    """The membrane before a reset within the step, r telling where the step before fired. Its products with r are exact."""
    if neuron.linear:
        return torch.mul(u, d, out=out).add_(x)
    if neuron.reset == "zero":
        return torch.mul(u, 1 - r, out=out).mul_(d).add_(x)
    return torch.mul(u, d, out=out).add_(x).addcmul_(r, threshold, value=-1)


def step(neuron: Neuron, u: Tensor, x: Tensor, d: Tensor, threshold: Tensor, *, out: Tensor) -> None:
    """The next state: the step of `scan_loop`, to its bits, without what autograd needs."""
    r = u if neuron.linear else fires(neuron, u, threshold)
    charge(neuron, u, r, x, d, threshold, out)
    if not neuron.reset_delay:
        out.addcmul_(fires(neuron, out, threshold).sub_(r), threshold if neuron.reset == "subtract" else out, value=-1)


class Speculative(torch.autograd.Function):
    """`(x (T, lanes), decay, threshold, amplitude, start (lanes,), neuron) -> spk, mem, final`.

    Parameters are one value or `(lanes,)`, the decay in the state's dtype, the others in that of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, d: Tensor, threshold: Tensor, amplitude: Tensor, start: Tensor, neuron: Neuron
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        u = speculate(partial(step, neuron), [x], start, float(d.abs().max()), [d, threshold], resting(d))
        ctx.save_for_backward(x, u, d, threshold, amplitude, start)
        ctx.neuron = neuron
        ctx.set_materialize_grads(False)
        spk = torch.empty_like(x) if neuron.spikes else None
        for at, before in _blocks(u, start) if spk is not None else ():
            assert spk is not None
            fires(neuron, _read(neuron, x[at], u[at], before, d, threshold), threshold, out=spk[at]).mul_(amplitude)
        return spk, u.to(x.dtype), u[-1].clone()

    @staticmethod
    @once_differentiable("leaky neuron, method 'speculative'", 'Use method "iterative".')
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, u, d, threshold, amplitude, start = ctx.saved_tensors
        grad_x, carry = torch.empty_like(x), torch.zeros_like(start, dtype=torch.float64)
        if grads[2] is not None:
            carry += grads[2]
        parameters = d, threshold, amplitude
        wanted = ctx.needs_input_grad[1:4]
        sums = [torch.zeros_like(p, dtype=torch.float64) if want else None for p, want in zip(parameters, wanted, strict=True)]
        for at, before in reversed(list(_blocks(u, start))):
            g_spk, g_mem = (None if grad is None else grad[at] for grad in grads[:2])
            grad_x[at], carry = _pull(ctx.neuron, x[at], u[at], before, parameters, g_spk, g_mem, carry, sums)
        totals = (None if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))
        return grad_x, *totals, carry.to(start.dtype), None


speculative: Callable[..., tuple[Tensor | None, Tensor, Tensor]] = Speculative.apply


def _blocks(u: Tensor, start: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of time, and the states before each of their steps."""
    rows, earlier = max(1, BLOCK // u.shape[1]), u[:-1]
    for at in range(0, len(u), rows):
        yield slice(at, at + rows), earlier[at - 1 : at + rows - 1] if at else torch.cat([start[None], earlier[: rows - 1]])


def _read(neuron: Neuron, x: Tensor, u: Tensor, before: Tensor, d: Tensor, threshold: Tensor) -> Tensor:
    """The membranes that spikes are read off: those kept, or, where a reset within the step came after, those before it."""
    if neuron.reset_delay:
        return u
    return charge(neuron, before, fires(neuron, before, threshold), x, d, threshold, torch.empty_like(before))


def _pull(
    neuron: Neuron,
    x: Tensor,
    u: Tensor,
    before: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    g_spk: Tensor | None,
    g_mem: Tensor | None,
    carry: Tensor,
    sums: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Backpropagation through a block of time: the gradient of x and, from that of its last state, that of the state before the block.

    v is what spikes are read off and u the state it becomes; r and q = H(v) - r tell where resets act, and carry no gradient:

        dL/du_t = dL/dmem_t + keep_{t+1} d dL/dv_{t+1}          dL/dv_t = du_t/dv_t dL/du_t + spike_t

    spike = dL/dspk amplitude H'(v - threshold); keep = 1 - r where a reset is to zero, else 1; du/dv = 1 unless the reset is within the
    step, u = v - q threshold or v - q v, where H' acts too, as in snnTorch.
    """
    d, threshold, amplitude = parameters
    total = torch.zeros_like(u, dtype=torch.float64) if g_mem is None else g_mem.to(torch.float64, copy=True)
    total[-1] += carry
    r, keep, spike, passed, chain = None, None, None, None, d.double()
    if not neuron.linear:
        r = fires(neuron, before, threshold)
        if neuron.reset == "zero":
            keep = 1 - r
            chain = chain * keep
    move = chain
    if g_spk is not None or not neuron.reset_delay:
        assert isinstance(neuron.surrogate, Surrogate)
        v = _read(neuron, x, u, before, d, threshold).to(x.dtype)
        slope = neuron.surrogate.slope(v - threshold)
        if not neuron.reset_delay and r is not None:
            jump, q = slope * (threshold if keep is None else v), fires(neuron, v, threshold).sub_(r)
            passed = 1 - jump if keep is None else 1 - q - jump
            by_threshold = jump - q if keep is None else jump
            chain = move * passed
        if g_spk is not None:
            spike = (slope * g_spk).mul_(amplitude)
            if sums[2] is not None:
                _add(sums[2], fires(neuron, v, threshold).mul_(g_spk))
    carry = _recur(total, chain, None if spike is None else move * spike)
    by_v = total.to(x.dtype) if passed is None else (total * passed).to(x.dtype)
    by_v = by_v if spike is None else by_v.add_(spike)
    _add(sums[0], by_v * before if keep is None else (by_v * before).mul_(keep))
    if passed is not None:
        _add(sums[1], total * by_threshold)
    if r is not None and keep is None:
        _add(sums[1], by_v * r, -1)
    if spike is not None:
        _add(sums[1], spike, -1)
    return by_v, carry


def _recur(total: Tensor, chain: Tensor, gift: Tensor | None) -> Tensor:
    """`total_t += chain_{t+1} total_{t+1} + gift_{t+1}`, backwards and in place; what the step before the first gets."""
    if gift is not None:
        total[:-1] += gift[1:]
    rows, factors = total.unbind(0), chain.expand_as(total).unbind(0)
    for t in range(len(rows) - 1, 0, -1):
        rows[t - 1].addcmul_(factors[t], rows[t])
    return rows[0] * factors[0] if gift is None else torch.addcmul(gift[0], rows[0], factors[0])


def _add(total: Tensor | None, terms: Tensor, sign: int = 1) -> None:
    if total is not None:
        total.add_(terms.sum_to_size(total.shape), alpha=sign)
