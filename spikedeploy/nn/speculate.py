"""Any recurrence over time without a loop over all of time, to the bits of the loop: verified speculative chunks.

    state_t = step(state_{t-1}, inputs_t)

Time is cut into chunks that run side by side from guessed states. A lane whose chunk began from a wrong guess runs again, until it meets
what the run before left: from there on the two are one. When every chunk has begun from the bits its predecessor ended with, all is as the
loop computes it. Fast where a neuron forgets its past within a chunk; where it does not, rounds are spent that cost together what the loop
does, and then the chunks are repaired in order, which is the loop.

Without input a state fades, but not to zero: at a few units of the smallest number a step rounds it to itself, and there it rests for good.
So a silent chunk is guessed to be at rest, with the sign of what came before, and rest is written down, not computed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import ceil, log

import torch
from torch import Tensor

Step = Callable[..., None]
"""`step(state, *inputs_t, *constants, out)` writes the next state into `out`; lane by lane, any number of lanes at once."""

WIDTH, SHORTEST, NARROW = 32768, 32, 256
"""Lanes times chunks, enough to hide what an operation costs; the fewest steps of a chunk; below how many lanes rows are copied first."""

CHECK_EVERY, FEW, OVERHEAD, MANY = 8, 4, 4096, 16
"""Steps between two looks at which lanes have met; lanes are picked out when fewer than 1/FEW are left; a step's fixed cost, in lanes;
chunks at rest are worth a look at all inputs from 1/MANY on."""

BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def speculate(
    step: Step, inputs: Sequence[Tensor], start: Tensor, decay: float, constants: Sequence[Tensor] = (), rest: Tensor | None = None
) -> Tensor:
    """All states `(T, lanes)` of inputs `(T, lanes)` from `start (lanes,)`; constants are one value or `(lanes,)`.

    decay  the largest factor per step by which a state fades: chunks are made long enough to forget the state before them
    rest   where a positive state ends that fades without input, see `resting`; one value or `(lanes,)`
    """
    steps, lanes = inputs[0].shape
    count = max(1, min(WIDTH // lanes, steps // max(SHORTEST, memory(decay, start.dtype))))
    whole = steps - steps % count
    result, inputs = torch.empty((steps, lanes), dtype=start.dtype, device=start.device), [x.contiguous() for x in inputs]
    last = start
    if count > 1:
        _Chunks(step, [x[:whole] for x in inputs], constants, count).solve(start, result[:whole], decay, rest)
        last = result[whole - 1]
    done = whole if count > 1 else 0
    run(step, last, [x[done:] for x in inputs], constants, result[done:])
    return result


def memory(decay: float, dtype: torch.dtype) -> int:
    """Steps in which two states fade to less than a rounding apart; the quarter more is what they take to round to the same (measured)."""
    if not 0 < decay < 1:
        return 0 if decay <= 0 else sys.maxsize
    return ceil(1.25 * log(torch.finfo(dtype).eps) / log(decay))


def resting(decay: Tensor) -> Tensor:
    """The largest state that its decay, at least 1/2, rounds to itself: n units of the smallest number with n (1 - decay) <= 1/2."""
    kind = torch.finfo(decay.dtype)
    units = torch.where(decay < 1, (0.5 / (1 - decay.double())).floor(), 0.0)
    return (units * (kind.smallest_normal * kind.eps)).to(decay.dtype)


def run(step: Step, state: Tensor, inputs: Sequence[Tensor], constants: Sequence[Tensor], to: Tensor) -> None:
    """The loop: one row of `inputs` and of `to` after the other."""
    for out, *row in zip(to.unbind(0), *(x.unbind(0) for x in inputs), strict=True):
        step(state, *row, *constants, out=out)
        state = out


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors differ in a bit: the sign of zero and equal NaN count as they are."""
    kind = BITS[a.element_size()]
    return a.view(kind) != b.view(kind)


class _Chunks:
    """`count` chunks of equal length, as rows `(length, count, lanes)`: row t holds step t of every chunk."""

    def __init__(self, step: Step, inputs: Sequence[Tensor], constants: Sequence[Tensor], count: int) -> None:
        self.step, self.constants, self.count = step, constants, count
        self.length, self.lanes = len(inputs[0]) // count, inputs[0].shape[1]
        self.inputs = [self._gathered(self._cut(x)) for x in inputs]

    def _cut(self, x: Tensor) -> Tensor:
        return x.view(self.count, self.length, self.lanes).transpose(0, 1)

    def _gathered(self, rows: Tensor) -> Tensor:
        return rows.contiguous() if self.lanes < NARROW else rows

    def solve(self, start: Tensor, to: Tensor, decay: float, rest: Tensor | None) -> None:
        """Fill `to (length * count, lanes)`."""
        target = self._cut(to)
        self.result = torch.empty_like(target, memory_format=torch.contiguous_format) if self.lanes < NARROW else target
        self.guess = torch.zeros((self.count, self.lanes), dtype=to.dtype, device=to.device)
        self.guess[0] = start
        run(self.step, self.guess, self.inputs, self.constants, self.result)
        if rest is not None and decay > 0.5:
            self._lay_to_rest(rest, decay)
        if not self._rounds():
            for chunk in range(1, self.count):
                self._repair(chunk, chunk + 1)
        if self.result is not target:
            target.copy_(self.result)

    def _lay_to_rest(self, rest: Tensor, decay: float) -> None:
        """Silent chunks are guessed to be at rest, and filled, unless in few of them what came before the silence has had time to fade."""
        ends, chunk = self.result[-1], torch.arange(self.count, device=self.result.device)[:, None]
        silent, rest = ends == 0, self._at_rest(rest)
        last = chunk.where(~silent, 0).cummax(0).values
        before = ends.gather(0, last)
        fading = (before.double() / rest).abs().log() / -log(decay)
        silent &= (before != 0) & (rest != 0)
        if MANY * (silent & ((chunk - 1 - last) * self.length > fading)).sum() < silent.numel():
            return
        for x in self.inputs:
            silent &= (x == 0).all(0)
        guess = rest.copysign(before)
        self.guess = guess.where(silent, self.guess)
        for row in self.result.unbind(0):
            row.copy_(guess.where(silent, row))

    def _at_rest(self, rest: Tensor) -> Tensor:
        """`rest (lanes,)` where a step without input keeps its bits, with either sign; else 0."""
        rest, nothing = rest.expand(self.lanes).clone(), [torch.zeros_like(x[0, 0]) for x in self.inputs]
        for state in (rest, -rest):
            out = torch.empty_like(state)
            self.step(state, *nothing, *self.constants, out=out)
            rest = rest.where(~apart(out, state), 0)
        return rest

    def _rounds(self) -> bool:
        """Repair all chunks at once, as long as that costs no more than the loop; whether none is left."""
        left = self.count * (self.lanes + OVERHEAD)
        while left > 0:
            wrong = self._repair(1, self.count)
            if not wrong:
                return True
            left -= wrong + OVERHEAD
        return False

    def _repair(self, first: int, end: int) -> int:
        """Run chunks first to end again, where they began from another state than their predecessor's last; how many lanes that were."""
        chunks = slice(first, end)
        state = self.result[-1, first - 1 : end - 1].clone()
        wrong = apart(state, self.guess[chunks])
        self.guess[chunks] = state
        found = int(wrong.sum())
        if not found:
            return 0
        inputs, result = [x[:, chunks].unbind(0) for x in self.inputs], self.result[:, chunks].unbind(0)
        left = found
        for t in range(self.length):
            if t % CHECK_EVERY == 0:
                if FEW * left < wrong.numel():
                    self._repair_lanes(t, first, wrong, state)
                    break
                out = torch.empty_like(state)
                self.step(state, *(x[t] for x in inputs), *self.constants, out=out)
                wrong = apart(out, result[t])
                left = int(wrong.sum())
                result[t].copy_(out)
            else:
                self.step(state, *(x[t] for x in inputs), *self.constants, out=result[t])
            state = result[t]
        return found

    def _repair_lanes(self, t: int, first: int, wrong: Tensor, state: Tensor) -> None:
        """From step t on, only the lanes that are `wrong`, picked out one by one, until each has met the run before."""
        chunk, lane = wrong.nonzero(as_tuple=True)
        state, constants = state[chunk, lane], [c if c.numel() == 1 else c[lane] for c in self.constants]
        along, across, _ = self.result.stride()
        at = t * along + (chunk + first) * across + lane
        flat = [x.as_strided((x.numel(),), (1,)) for x in (*self.inputs, self.result)]
        for steps in range(self.length - t):
            if not len(at):
                return
            out = torch.empty_like(state)
            self.step(state, *(x[at] for x in flat[:-1]), *constants, out=out)
            if steps % CHECK_EVERY == CHECK_EVERY - 1:
                left = apart(out, flat[-1][at]).nonzero()[:, 0]
                flat[-1][at] = out
                at, state, constants = at[left], out[left], [c if c.numel() == 1 else c[left] for c in constants]
            else:
                flat[-1][at] = out
                state = out
            at = at + along
