"""Associative recall: which spiking memory can be told a few pairs and asked for one of them?

    python examples/recall.py --model ours --updates 4000 --seed 0

One stream (the task of the Neural Turing Machine paper): N steps that show a random binary key and value of W bits each, a delimiter,
silence, and a query key; the network answers the value at that step. Trains on a CPU in minutes, prints bit and item accuracy
by N, and writes the trained model as an ONNX step cell with `--onnx FILE`. The benchmark `benchmarks/recall.py` runs it for all models.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import snntorch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky, StateLeaky

BITS = 6
WIDTH = 2 * BITS + 2  # key, value, delimiter, query
RETENTION = 50.0  # steps that a write should last at first


class Batch(NamedTuple):
    """x `(T, B, WIDTH)`, bits -1 or 1 where shown and 0 where not; the answers `(Q, B, BITS)` due at the steps `asked (Q,)`."""

    x: Tensor
    answers: Tensor
    asked: Tensor


def distinct_keys(batch: int, pairs: int, random: torch.Generator) -> Tensor:
    """`(pairs, B, BITS)` of -1 and 1: different keys within each batch element."""
    numbers = torch.rand(batch, 2**BITS, generator=random).argsort(1)[:, :pairs].T
    return ((numbers.unsqueeze(-1) >> torch.arange(BITS)) & 1).float() * 2 - 1


def episode(batch: int, pairs: int, delay: int, random: torch.Generator) -> Batch:
    """`pairs` steps, `delay` steps of which the first is the delimiter, and the query: T = pairs + delay + 1."""
    keys = distinct_keys(batch, pairs, random)
    values = torch.randint(0, 2, keys.shape, generator=random).float() * 2 - 1
    chosen = torch.randint(0, pairs, (batch,), generator=random)
    x = torch.zeros(pairs + delay + 1, batch, WIDTH)
    x[:pairs, :, :BITS], x[:pairs, :, BITS : 2 * BITS] = keys, values
    x[pairs, :, 2 * BITS] = 1
    x[-1, :, :BITS], x[-1, :, 2 * BITS + 1] = keys[chosen, torch.arange(batch)], 1
    return Batch(x, values[chosen, torch.arange(batch)].unsqueeze(0), torch.tensor([len(x) - 1]))


def stream(batch: int, episodes: int, random: torch.Generator, pairs: int = 4, delay: int = 4) -> Batch:
    """Episodes one after the other without a reset: 64 keys are bound again and again, and only the latest binding counts."""
    parts = [episode(batch, pairs, delay, random) for _ in range(episodes)]
    steps = len(parts[0].x)
    return Batch(torch.cat([p.x for p in parts]), torch.cat([p.answers for p in parts]), torch.arange(1, episodes + 1) * steps - 1)


class Recall(nn.Module):
    """An encoder of the step, one or more spiking layers, a decoder: `(T, B, WIDTH)` -> logits `(T, B, BITS)`."""

    def __init__(self, spiking: nn.Module, encoded: int, read: int, hidden: int = 128) -> None:
        super().__init__()
        self.encode = nn.Linear(WIDTH, encoded)
        self.bend = nn.GELU()
        self.spiking = spiking
        self.norm = nn.LayerNorm(read)
        self.decode = nn.Linear(read, hidden)
        self.bend2 = nn.GELU()
        self.answer = nn.Linear(hidden, BITS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spiking(self.bend(self.encode(x))))
        return self.answer(self.bend2(self.decode(y)))


def gen1(side: int) -> Recall:
    """Two layers of parallel leaky neurons (snnTorch's StateLeaky, in this project's faster form) with learned decays."""
    decays = 1 - 10 ** -torch.linspace(0.3, 2, 10 * side)  # from 2 to 100 steps

    def spikes() -> nn.Module:
        return Spikes(StateLeaky(beta=decays, channels=10 * side, learn_beta=True))

    layers = nn.Sequential(nn.Linear(4 * side, 10 * side), spikes(), nn.Linear(10 * side, 10 * side), spikes())
    return Recall(layers, 4 * side, 10 * side)


class Spikes(nn.Module):
    """The spikes of a neuron that returns (spikes, membrane)."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.neuron(x)[0]
        return spikes


def library(side: int, retention: float | None = None) -> Recall:
    """snnTorch's Gen2; it has no option for the initial retention, so the same bias is written into it."""
    memory = snntorch.AssociativeLeaky(4 * side, side, side, side * side)
    if retention:
        nn.init.constant_(memory.to_alpha.bias, math.log(retention))
    return Recall(memory, 4 * side, side * side)


def memory(kind: type[AssociativeLeaky] | type[DeltaRuleLeaky], side: int, retention: float | None) -> Recall:
    return Recall(kind(4 * side, side, side, initial_retention=retention), 4 * side, side * side)


MODELS: dict[str, Callable[[int], Recall]] = {
    "gen1": gen1,
    "snntorch": library,
    "snntorch+retention": lambda side: library(side, RETENTION),
    "ours-no-retention": lambda side: memory(AssociativeLeaky, side, None),
    "ours": lambda side: memory(AssociativeLeaky, side, RETENTION),
    "gen3": lambda side: memory(DeltaRuleLeaky, side, RETENTION),
}


def build(name: str, seed: int, side: int = 16) -> Recall:
    """A fresh network; the seed decides its weights."""
    torch.manual_seed(seed)
    return MODELS[name](side)


def mixed(seed: int, batch: int, pairs: tuple[int, int], delay: tuple[int, int]) -> Iterator[Batch]:
    """Endless training episodes: N and delay drawn anew for each batch, from `pairs` and `delay` (both ends included)."""
    random = torch.Generator().manual_seed(seed)
    while True:
        n, wait = (int(torch.randint(low, high + 1, (), generator=random)) for low, high in (pairs, delay))
        yield episode(batch, n, wait, random)


def streams(seed: int, batch: int, episodes: int) -> Iterator[Batch]:
    """Endless training streams."""
    random = torch.Generator().manual_seed(seed)
    while True:
        yield stream(batch, episodes, random)


def train(model: nn.Module, batches: Iterator[Batch], updates: int, rate: float = 1e-2, log: Callable[[str], None] = print) -> float:
    """AdamW under a one-cycle rate for `updates` batches; returns the seconds taken."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=updates, pct_start=0.1)
    begin, loss = time.perf_counter(), torch.tensor(0.0)
    for update, batch in zip(range(1, updates + 1), batches, strict=False):
        logits = model(batch.x)[batch.asked]
        loss = F.binary_cross_entropy_with_logits(logits, (batch.answers > 0).float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if update % max(1, updates // 10) == 0:
            log(f"  update {update:6d}  loss {loss.item():.4f}  {time.perf_counter() - begin:6.1f} s")
    return time.perf_counter() - begin


def score(logits: Tensor, batch: Batch) -> tuple[float, float]:
    """The fraction of right bits, and of items all of whose bits are right."""
    right = (logits > 0) == (batch.answers > 0)
    return right.float().mean().item(), right.all(-1).float().mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """Bit and item accuracy of the parallel forward."""
    return score(model(batch.x)[batch.asked], batch)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one model on associative recall.")
    parser.add_argument("--model", choices=MODELS, default="ours")
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=16, help="d = n of the memory")
    parser.add_argument("--onnx", type=Path, help="write the trained model as an ONNX step cell")
    options = parser.parse_args()
    model = build(options.model, options.seed, options.side)
    print(f"{options.model}: {sum(p.numel() for p in model.parameters())} parameters")
    train(model, mixed(options.seed, options.batch, (2, 6), (2, 24)), options.updates)
    for pairs in (2, 3, 4, 5, 6, 8):
        bits, items = evaluate(model, episode(1000, pairs, 12, torch.Generator().manual_seed(1)))
        print(f"N = {pairs}: bits {bits:.3f}, items {items:.3f}")
    if options.onnx:
        from spikedeploy import convert
        from spikedeploy.exporters import onnx_cell

        example = episode(2, 2, 2, torch.Generator().manual_seed(0)).x
        onnx_cell.write(convert(model.eval(), example), options.onnx)


if __name__ == "__main__":
    main()
