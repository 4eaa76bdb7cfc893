"""NeuroBench's numbers and ours on the same models and inputs, to the last digit.

    python benchmarks/neurobench_compare.py [--out benchmarks/results/neurobench.csv]

Needs `neurobench` (with numba and tonic it pins older versions than this project uses: an environment of its own, installed without
dependencies, is enough). Its hooks watch the torch modules step by step; ours run the deployed program on the event-driven engine.
docs/energy.md says where the two differ.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import snntorch as snn
import torch
from neurobench.metrics.static import ConnectionSparsity
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import SNNTorchModel
from torch import Tensor, nn

from spikedeploy.conversion import convert
from spikedeploy.report import measure

Made = tuple[nn.Module, Tensor]


class Dense(nn.Module):
    """Two linear layers with leaky neurons, one step at a time; a tenth of the weights is zero."""

    def __init__(self, sizes: tuple[int, int, int], reset: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
        self.lif1, self.lif2 = (snn.Leaky(beta=0.9, reset_mechanism=reset, init_hidden=True, output=last) for last in (False, True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.lif1 = snn.Leaky(beta=0.8, init_hidden=True)
        self.fc = nn.Linear(6 * 8 * 8, 10)
        self.lif2 = snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lif2(self.fc(self.lif1(self.conv(x)).flatten(1)))


class Rolled(nn.Module):
    """A stepwise model over a whole sequence `(T, B, ...)`: what is converted."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        snn.utils.reset(self.cell)
        return torch.stack([self.cell(now)[0] for now in x])


def pruned(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("weight"):
                p.mul_(2).mul_(torch.rand_like(p) >= 0.1)
    return model.eval()


def spikes(*shape: int, rate: float) -> Tensor:
    return (torch.rand(*shape) < rate).float()


def dense_spikes() -> Made:
    return pruned(Dense((100, 60, 10), "subtract")), spikes(40, 5, 100, rate=0.1)


def dense_real() -> Made:
    """Real-valued input: the first layer's operations are MACs."""
    return pruned(Dense((50, 33, 7), "zero")), torch.randn(30, 4, 50) * (torch.rand(30, 4, 50) < 0.5)


def convolution() -> Made:
    return pruned(Convolutional()), spikes(25, 3, 2, 16, 16, rate=0.05)


MODELS: dict[str, Callable[[], Made]] = {"dense, spikes": dense_spikes, "dense, real input": dense_real, "convolution, spikes": convolution}


def theirs(model: nn.Module, x: Tensor) -> dict[str, float]:
    wrapped = SNNTorchModel(model)
    sparsity, operations, connections = ActivationSparsity(), SynapticOperations(), ConnectionSparsity()(wrapped)
    wrapped.register_hooks()
    data = x.transpose(0, 1)
    with torch.no_grad():
        wrapped(data)
        counted = operations(wrapped, None, (data, None))
    return {"activation sparsity": sparsity(wrapped, None, None), "connection sparsity": connections, **counted}


def ours(model: nn.Module, x: Tensor) -> dict[str, float]:
    report = measure(convert(Rolled(model), x), x.numpy())
    synaptic, spiking = report.synaptic, [layer for layer in report.layers if layer.decisions]
    total, zero = sum(layer.decisions for layer in spiking), sum(layer.decisions - layer.spikes for layer in spiking)
    return {
        "activation sparsity": zero / total,
        "connection sparsity": round(synaptic.connection_sparsity or 0.0, 4),
        "Effective_MACs": synaptic.macs / report.batch,
        "Effective_ACs": synaptic.acs / report.batch,
        "Dense": synaptic.dense / report.batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/neurobench.csv"))
    arguments = parser.parse_args()
    rows = []
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model, x = make()
        left, right = theirs(model, x), ours(model, x)
        rows += [(name, key, repr(left[key]), repr(right[key]), left[key] == right[key]) for key in left]
    with arguments.out.open("w", newline="") as file:
        versions = ", ".join(f"{package} {version(package)}" for package in ("neurobench", "snntorch", "torch"))
        file.write(f"# python benchmarks/neurobench_compare.py\n# {versions}\n")
        table = csv.writer(file)
        table.writerows([("model", "metric", "neurobench", "spikedeploy", "equal"), *rows])
    print("\n".join("  ".join(map(str, row)) for row in rows))
    sys.exit(0 if all(row[-1] for row in rows) else 1)


if __name__ == "__main__":
    main()
