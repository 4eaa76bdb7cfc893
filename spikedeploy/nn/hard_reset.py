"""The leaky neuron with hard reset, trained exactly: three forms of one recurrence, to the same bits.

    u'_t = tau * u_{t-1} + x_t        s_t = 1[u'_t >= 1]        u_t = u'_t (1 - s_t)

`rollout` is the loop, and the specification. The fused kernel is one. `speculate` needs neither a kernel nor a loop over all of time: it
cuts time into chunks that run side by side from guessed carries; a lane whose carry proves wrong runs again, until its membrane meets the
earlier run's; when no carry changed, every chunk has run from the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikedeploy import native
from spikedeploy.nn.allocator import empty
from spikedeploy.nn.uncompiled import uncompiled

Step = Callable[..., tuple[Tensor, Tensor]]
CHECK_EVERY = 4  # how often a second run asks whether it has met the first: a comparison costs about as much as a step


def rollout(x: Tensor, tau: float) -> Tensor:
    """The membrane `u'` before reset; x `(T, ...)`. The loop that the others are tested against."""
    u, membrane = torch.zeros_like(x[0]), []
    for current in x.unbind(0):
        u = tau * u + current
        membrane.append(u)
        u = torch.where(u >= 1, torch.zeros_like(u), u)
    return torch.stack(membrane)


def triangle(away: Tensor) -> Tensor:
    """The surrogate derivative of the spike, `max(0, 1 - |u' - 1|)`; away = u' - 1."""
    return (1 - away.abs()).clamp_min(0)


def speculate(step: Step, inputs: tuple[Tensor, ...], chunk: int | None = None) -> Tensor:
    """Run `output_t, state_t = step(state_{t-1}, *inputs_t)` from state zero; inputs and result `(T, lanes)`.

    Exact whatever `step` is; fast where the state forgets its past within a few steps.
    """
    steps, lanes = inputs[0].shape
    chunk = chunk or max(16, ceil(sqrt(steps)))
    count = ceil(steps / chunk)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, count * chunk - steps)) for x in inputs]
    rows = [x.reshape(count, chunk, lanes).transpose(0, 1).reshape(chunk, count * lanes) for x in padded]
    result = torch.empty_like(rows[0])
    guess = end = torch.zeros_like(rows[0][0])
    for t in range(chunk):
        result[t], end = step(end, *(x[t] for x in rows))
    for _ in range(count):  # after k rounds the first k chunks are final, so this ends
        carry = torch.cat([torch.zeros_like(end[:lanes]), end[:-lanes]]) if count > 1 else torch.zeros_like(end)
        wrong = (carry != guess).nonzero()[:, 0]
        if not len(wrong):
            break
        end = _again(step, rows, result, end, carry, wrong)
        guess = carry
    return result.reshape(chunk, count, lanes).transpose(0, 1).reshape(count * chunk, lanes)[:steps]


def _again(step: Step, rows: list[Tensor], result: Tensor, end: Tensor, carry: Tensor, wrong: Tensor) -> Tensor:
    """Run the lanes `wrong` from their true carry until they meet what `result` holds; the end states after that."""
    state = carry[wrong]
    for t in range(len(result)):
        output, state = step(state, *(x[t, wrong] for x in rows))
        met = t % CHECK_EVERY == 0 and bool((output == result[t, wrong]).all())
        result[t, wrong] = output
        if met:
            return end
    return end.index_copy(0, wrong, state)


def _fire(tau: float) -> Step:
    def step(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        u = tau * u + x
        return u, torch.where(u >= 1, torch.zeros_like(u), u)

    return step


def _adjoint(tau: float) -> Step:
    def step(carry: Tensor, direct: Tensor, membrane: Tensor, g_membrane: Tensor | None = None) -> tuple[Tensor, Tensor]:
        carry = direct + torch.where(membrane >= 1, torch.zeros_like(carry), tau * carry)
        carry = carry if g_membrane is None else carry + g_membrane
        return carry, carry

    return step


def has_kernel(x: Tensor) -> bool:
    """Whether the native kernel can take `x`."""
    return native.available() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _call(name: str, x: Tensor, *args: Tensor | None, tau: float) -> None:
    ffi, lib = native.core()
    kind, suffix = ("float *", "f32") if x.dtype == torch.float32 else ("double *", "f64")
    pointers = [ffi.NULL if a is None else ffi.cast(kind, a.data_ptr()) for a in (x, *args)]
    getattr(lib, f"sd_hard_reset_{name}_{suffix}")(*pointers, x.shape[0], x[0].numel(), tau, torch.get_num_threads())


class HardReset(torch.autograd.Function):
    """Spikes and membrane from the current, exactly; the gradient of backpropagation through time with the reset detached.

    x `(T, ...)` in units of the threshold -> spikes, membrane `(T, ...)`. Backward, from the last step:

        g_t = dL/ds_t * max(0, 1 - |u'_t - 1|) + dL/du'_t + tau (1 - s_t) g_{t+1}        dL/dx_t = g_t
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, tau: float, use_kernel: bool) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        if use_kernel:
            membrane, spikes = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
            _call("forward", x, membrane, spikes, tau=tau)
        else:
            membrane = speculate(_fire(tau), (x.reshape(len(x), -1),)).reshape(x.shape)
            spikes = (membrane >= 1).to(x)
        ctx.save_for_backward(membrane)
        ctx.set_materialize_grads(False)
        ctx.tau, ctx.use_kernel = tau, use_kernel  # type: ignore[attr-defined]
        return spikes, membrane

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        (membrane,) = ctx.saved_tensors  # type: ignore[attr-defined]
        g_spikes, g_membrane = grads
        if g_spikes is None and g_membrane is None:
            return None, None, None
        g_spikes = torch.zeros_like(membrane) if g_spikes is None else g_spikes.contiguous()
        g_membrane = None if g_membrane is None else g_membrane.contiguous()
        tau: float = ctx.tau  # type: ignore[attr-defined]
        if ctx.use_kernel:  # type: ignore[attr-defined]
            g_x = empty(membrane.shape, membrane.dtype)
            _call("backward", membrane, g_spikes, g_membrane, g_x, tau=tau)
            return g_x, None, None
        return _adjoint_in_chunks(membrane, g_spikes, g_membrane, tau), None, None


def _adjoint_in_chunks(membrane: Tensor, g_spikes: Tensor, g_membrane: Tensor | None, tau: float) -> Tensor:
    """The backward recurrence is the same kind of loop, backwards in time."""
    direct = g_spikes * triangle(membrane - 1)
    flat = [x.reshape(len(x), -1).flip(0) for x in (direct, membrane)]
    if g_membrane is not None:
        # the kernel adds this gradient last, and so does the step here: the bits are the same
        flat.append(g_membrane.reshape(len(direct), -1).flip(0))
    return speculate(_adjoint(tau), tuple(flat)).flip(0).reshape(membrane.shape)


@uncompiled
def hard_reset(x: Tensor, tau: float, *, kernel: bool | None = None) -> tuple[Tensor, Tensor]:
    """Spikes and membrane before reset, `(T, ...)` each, of currents `x (T, ...)` in units of the threshold.

    `kernel` None takes the native kernel where it can be used, False the pure torch form; both give the same bits. Raises `ValueError` for
    an empty sequence, for numbers that are not floating point, and for True where the kernel cannot take `x`.
    """
    if x.ndim < 1 or not len(x) or not x.is_floating_point():
        raise ValueError(f"hard_reset: currents {tuple(x.shape)} of {x.dtype}; (T, ...) floating point with at least one step is needed.")
    use = has_kernel(x) if kernel is None else kernel
    if use and not has_kernel(x):
        raise ValueError(
            f"hard_reset: {x.dtype} on {x.device}; the kernel takes float32 and float64 on the CPU. {native.why_not()}".rstrip()
        )
    return HardReset.apply(x, tau, use)  # type: ignore[no-untyped-call]
