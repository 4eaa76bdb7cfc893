"""The two scripts of the SpikingSSM, each as a user runs it, on very little data."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from spikedeploy.nn.sdn import SurrogateDynamicNetwork

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sequential_mnist_trains_and_deploys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 48).astype(np.uint8)
    images = (labels[:, None, None] * 20 + rng.integers(0, 40, (48, 28, 28))).astype(np.uint8)
    np.savez(tmp_path / "m.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    small = ("--features", 6, "--states", 4, "--epochs", 1, "--batch", 16)
    assert "loss" in run("sequential_mnist.py", "train", "m.npz", *small, "--out", "a.pt", cwd=tmp_path)
    run("sequential_mnist.py", "deploy", "m.npz", "a.pt", "--batch", 10, "--result", "r.csv", cwd=tmp_path)
    lines = (tmp_path / "r.csv").read_text().splitlines()
    found = dict(csv.reader(lines[1:]))
    assert float(found["test images"]) == 20
    assert float(found["difference, points"]) == 0
    assert float(found["event-driven engine: same answer as the cell on 20 images, %"]) == 100


def test_fit_sdn_writes_a_network_and_its_log(tmp_path: Path) -> None:
    run("fit_sdn.py", "--tau", 0.25, "--steps", 3, "--batch", 256, "--sequences", 4, "--out", "n.npz", cwd=tmp_path)
    assert SurrogateDynamicNetwork.load(tmp_path / "n.npz").tau == 0.25
    log = json.loads((tmp_path / "n.log.json").read_text())
    assert min(log["spike_agreement_by_sigma"].values()) > 0.99, "the start alone is better than that"
    assert [row["step"] for row in log["log"]] == [0, 2]
