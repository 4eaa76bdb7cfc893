"""Accuracy against sparsity on a trained model: scikit-learn's digits, a row of pixels a step, through a Gen2 layer.

    python benchmarks/sweep.py

Trains for less than a minute, then runs `spikedeploy sweep` on the test half; writes results/sweep.csv and results/sweep.png.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import spikedeploy
from spikedeploy import cli
from spikedeploy.nn import AssociativeLeaky

SETTINGS = ("--topk-k", "1.0,0.5,0.25,0.1", "--topk-v", "1.0,0.5,0.25,0.1")
RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "topk_k",
    "topk_v",
    "accuracy",
    "sparsity",
    "acs",
    "macs",
    "lazy_saved",
    "differ",
    "decisions",
    "first_step",
    "output_difference",
)


class Rows(nn.Module):
    """`(8, B, 8)` pixels -> logits `(B, 10)` after the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = AssociativeLeaky(32, 16, 16, threshold=0.3, initial_retention=8.0)
        self.encode, self.decode = nn.Linear(8, 32), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.decode(self.memory(torch.relu(self.encode(x))))[-1]
        return result


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test half, `(8, B, 8)` in [0, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 8, 8).transpose(0, 1).contiguous()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    y, half = torch.tensor(labels), len(labels) // 2
    return x[:, order[:half]], y[order[:half]], x[:, order[half:]], y[order[half:]]


def train(x: Tensor, y: Tensor, epochs: int = 200) -> nn.Module:
    """Adam on cross-entropy."""
    torch.manual_seed(0)
    model = Rows()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(y)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[:, part]), y[part]).backward()
            optimiser.step()
    return model.eval()


def cpu() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, torch {torch.__version__}, numpy {np.__version__}"


def main() -> None:
    torch.set_num_threads(1)
    x, y, test, test_y = data()
    model = train(x, y)
    with tempfile.TemporaryDirectory() as folder:
        spikedeploy.save(model, Path(folder) / "rows.pt", test)
        np.savez(Path(folder) / "test.npz", input=test.numpy(), labels=test_y.numpy())
        given = ["sweep", f"{folder}/rows.pt", "--data", f"{folder}/test.npz", *SETTINGS, "--jobs", "2"]
        assert cli.outcome([*given, "--figure", str(RESULTS / "sweep.png")]) == 0
        with redirect_stdout(io.StringIO()) as out:
            assert cli.outcome([*given, "--json"]) == 0
    found = json.loads(out.getvalue())
    with (RESULTS / "sweep.csv").open("w", newline="") as file:
        file.write(
            "# python benchmarks/sweep.py; digits by rows, Gen2 layer of 16 x 16 cells trained without top-k; first row: the full model\n"
        )
        file.write(f"# spikedeploy sweep rows.pt --data test.npz {' '.join(SETTINGS)}; {found['steps']} steps, {found['batch']} samples\n")
        file.write(f"# {cpu()}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for point in (found["full"], *found["points"]):
            writer.writerow([point[name] for name in COLUMNS])


if __name__ == "__main__":
    main()
