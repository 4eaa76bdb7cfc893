"""Triton kernels of the leaky neuron: one program per block of lanes and chunk of time. Import only where triton is installed.

A program walks its chunk step by step. With one chunk it is the whole recurrence (any reset). A linear neuron with few lanes is cut
into chunks and run twice: once for what each chunk adds to its own last state, and, with the carries between them known, for all steps.
Positions are 64-bit numbers: a sequence may hold more than 2^31 of them. `k` is a constant, because a Python float is passed on in 32 bits.
"""

# mypy: ignore-errors
# (a kernel's arguments are Triton's own types, and its decorator is untyped)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x, mem, spk, final, initial, decay, threshold, amplitude, steps, length, lanes,
    reset: tl.constexpr, strict: tl.constexpr, store: tl.constexpr, spikes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`u_t = d u_{t-1} + x_t` with reset 0 none, 1 subtract, 2 zero; state in the dtype of `initial (chunks, lanes)`."""
    lane = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    chunk = tl.program_id(1)
    live = lane < lanes
    u = tl.load(initial + chunk * lanes + lane, live, 0)
    d = tl.load(decay + lane, live, 0)
    theta = tl.load(threshold + lane, live, 0)
    a = tl.load(amplitude + lane, live, 0)
    first = chunk * length
    at = (lane * 0 + first) * lanes + lane
    for _ in range(first, min(first + length, steps)):
        x_t = tl.load(x + at, live, 0)
        seen = u.to(x_t.dtype)
        r = (seen > theta if strict else seen >= theta).to(x_t.dtype)
        if reset == 2:
            u = (1 - r).to(u.dtype) * u
        u = d * u + x_t.to(u.dtype)
        if reset == 1:
            u = u - (r * theta).to(u.dtype)
        if store:
            v = u.to(x_t.dtype)
            tl.store(mem + at, v, live)
            if spikes:
                h = (v > theta if strict else v >= theta).to(x_t.dtype)
                tl.store(spk + at, h * a, live)
        at += lanes
    tl.store(final + chunk * lanes + lane, u, live)


@triton.jit
def slope(u, k: tl.constexpr, kind: tl.constexpr):
    """dH/du of the surrogate `kind`, in the order of `spikedeploy.nn.surrogate.KINDS`."""
    z = u * 0
    if kind == 1:
        w = 1.5707963267948966 * k * u
        z = k / 2 / (1 + w * w)
    if kind == 2:
        w = 1 + k * tl.abs(u)
        z = 1 / (w * w)
    if kind == 3:
        e = tl.exp(-k * tl.abs(u))
        z = k * e / ((1 + e) * (1 + e))
    if kind == 4:
        z = u * 0 + 1
    if kind == 5:
        z = k * tl.maximum(1 - k * tl.abs(u), 0)
    if kind == 6:
        z = k * tl.where(u >= 0, -1, 1).to(u.dtype)
    return z


@triton.jit
def backward(
    mem, grad_mem, grad_spk, initial, decay, threshold, amplitude, carry, grad_x, first_carry, g_decay, g_threshold, g_amplitude,
    k: tl.constexpr, steps, length, lanes, reset: tl.constexpr, strict: tl.constexpr, store: tl.constexpr, spikes: tl.constexpr,
    kind: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The adjoint in float64, from `carry (chunks, lanes)` at each chunk's end; per chunk and lane the sums for the parameters."""
    lane = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    chunk = tl.program_id(1)
    live = lane < lanes
    here = chunk * lanes + lane
    c = tl.load(carry + here, live, 0)
    d = tl.load(decay + lane, live, 0).to(tl.float64)
    theta = tl.load(threshold + lane, live, 0)
    a = tl.load(amplitude + lane, live, 0)
    start = tl.load(initial + lane, live, 0).to(theta.dtype)
    sum_d = c * 0
    sum_theta = c * 0
    sum_a = c * 0
    first = chunk * length
    last = min(first + length, steps) - 1
    at = (lane * 0 + last) * lanes + lane
    for _ in range(0, last - first + 1):
        v = tl.load(mem + at, live, 0)
        before = tl.load(mem + tl.maximum(at - lanes, lane), live, 0)
        before = tl.where(at < lanes, start, before)
        r = (before > theta if strict else before >= theta).to(tl.float64)
        direct = c * 0
        if spikes:
            gs = tl.load(grad_spk + at, live, 0)
            direct = (gs * a * slope(v - theta, k, kind)).to(tl.float64)
            sum_a += tl.where(v > theta if strict else v >= theta, gs, 0).to(tl.float64)
        lam = c + tl.load(grad_mem + at, live, 0).to(tl.float64) + direct
        sum_theta -= direct
        kept = 1 - r if reset == 2 else r * 0 + 1
        if reset == 1:
            sum_theta -= r * lam
        sum_d += lam * kept * before.to(tl.float64)
        c = d * lam * kept
        if store:
            tl.store(grad_x + at, lam.to(v.dtype), live)
        at -= lanes
    tl.store(first_carry + here, c, live)
    if store:
        tl.store(g_decay + here, sum_d, live)
        tl.store(g_threshold + here, sum_theta, live)
        tl.store(g_amplitude + here, sum_a, live)
