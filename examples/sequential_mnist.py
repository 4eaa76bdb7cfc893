"""Sequential MNIST with spikes: train over 784 pixels in parallel, deploy the neuron that runs pixel by pixel.

    python examples/sequential_mnist.py train mnist.npz --out smnist.pt     an hour on a CPU core; --epochs 1 for a taste
    python examples/sequential_mnist.py deploy mnist.npz smnist.pt          the same weights as a step cell: accuracy, sparsity

The file holds x_train, y_train, x_test, y_test (uint8), as the copy that Keras serves. One step is one pixel, T = 784.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikedeploy
from spikedeploy.exporters import onnx_cell
from spikedeploy.nn.s4d import S4D
from spikedeploy.nn.spiking_ssm import SpikingLIF, SpikingSSM
from spikedeploy.runtime.events import EventEngine
from spikedeploy.runtime.onnx_runner import OnnxRunner

MEAN, SPREAD = 0.1307, 0.3081
PUBLISHED = 99.6  # 2 layers of 400, arXiv 2408.14909


def pixels(images: np.ndarray) -> Tensor:
    """Images `(B, 28, 28)` as a sequence `(784, B, 1)`, normalised."""
    return (torch.from_numpy(images.reshape(len(images), -1).T.astype(np.float32))[..., None] / 255 - MEAN) / SPREAD


def optimiser_for(model: nn.Module, rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW; the state-space parameters slowly and without weight decay, as published."""
    slow = {id(p) for m in model.modules() if isinstance(m, S4D) for name, p in m.named_parameters() if name in S4D.trained_slowly}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in slow], "lr": min(rate, 1e-3), "weight_decay": 0.0},
        {"params": [p for p in model.parameters() if id(p) not in slow and p.requires_grad], "lr": rate, "weight_decay": 0.01},
    ]
    optimiser = torch.optim.AdamW(groups)
    rise = max(1, steps // 20)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: min(1.0, (k + 1) / rise) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, k / steps)))
    )
    return optimiser, shape


class Rates:
    """The share of neurons that fire, per layer, collected while the model runs; with a gradient only where it exceeds the ceiling."""

    def __init__(self, model: nn.Module, ceiling: float = 1.0) -> None:
        self.now: dict[str, float] = {}
        self.above: list[Tensor] = []
        self.ceiling = ceiling
        self.hooks = [m.register_forward_hook(self.seen(name)) for name, m in model.named_modules() if isinstance(m, SpikingLIF)]

    def seen(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, spikes: Tensor) -> None:
            self.now[name] = float(spikes.detach().mean())
            if self.now[name] > self.ceiling:
                self.above.append(spikes.mean() - self.ceiling)

        return hook

    def penalty(self) -> Tensor:
        """How far the rates of this pass lie above the ceiling, summed over layers."""
        above, self.above = self.above, []
        return sum(above, torch.zeros(()))

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def evaluate(model: nn.Module, images: np.ndarray, labels: np.ndarray, batch: int = 250) -> tuple[float, dict[str, float]]:
    """Accuracy in percent, and the firing rate per layer."""
    model.eval()
    rates, right, seen = Rates(model), 0, {}
    for at in range(0, len(images), batch):
        right += int((model(pixels(images[at : at + batch])).argmax(1).numpy() == labels[at : at + batch]).sum())
        for name, rate in rates.now.items():
            seen[name] = seen.get(name, 0.0) + rate * len(images[at : at + batch]) / len(images)
    rates.remove()
    return 100 * right / len(images), seen


def train(args: argparse.Namespace, data: dict[str, np.ndarray]) -> None:
    torch.manual_seed(args.seed)
    images, labels = data["x_train"], torch.from_numpy(data["y_train"].astype(np.int64))
    sizes = {"features": args.features, "layers": args.layers, "states": args.states, "dropout": args.dropout}
    model = spikedeploy.load(args.model) if args.model else SpikingSSM(1, 10, form="scan", **sizes)
    steps = args.epochs * (len(images) // args.batch)
    optimiser, schedule = optimiser_for(model, args.rate, steps)
    rates, begin = Rates(model, args.ceiling), time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        order = np.random.default_rng(args.seed + epoch).permutation(len(images))
        for index, at in enumerate(range(0, len(images) - args.batch + 1, args.batch)):
            rows = order[at : at + args.batch]
            loss = F.cross_entropy(model(pixels(images[rows])), labels[rows])
            optimiser.zero_grad()
            (loss + args.quiet * rates.penalty()).backward()
            optimiser.step()
            schedule.step()
            if index % 50 == 0:
                fired = [round(rate, 3) for rate in rates.now.values()]
                print(
                    f"epoch {epoch} step {index} loss {float(loss.detach()):.4f} rates {fired} {time.perf_counter() - begin:.0f} s",
                    flush=True,
                )
        accuracy, seen = evaluate(model, data["x_test"][:2000], data["y_test"][:2000])
        print(f"epoch {epoch} accuracy on 2,000 test images {accuracy:.2f} {seen}", flush=True)
        spikedeploy.save(model.eval(), args.out, pixels(images[:2]))


def answers(run: Any, images: np.ndarray, batch: int) -> tuple[np.ndarray, float]:
    """The class of every image by a runner of `(784, batch, 1)`, and the seconds it took; images that fill no batch are left out."""
    found, begin = [], time.perf_counter()
    for at in range(0, len(images) - batch + 1, batch):
        (scores,) = run(pixels(images[at : at + batch]).numpy()).outputs.values()
        found.append(scores.argmax(1))
        if at // batch % 20 == 19:
            print(f"{at + batch} images, {time.perf_counter() - begin:.0f} s", flush=True)
    return np.concatenate(found), time.perf_counter() - begin


def deploy(args: argparse.Namespace, data: dict[str, np.ndarray]) -> None:
    """Accuracy of the parallel model and of the ONNX step cell on the same test images; the event-driven engine on some of them."""
    model = spikedeploy.load(args.model)
    images, labels = data["x_test"][: args.images], data["y_test"][: args.images]
    accuracy, rates = evaluate(model, images, labels)
    print(f"parallel model: {accuracy:.2f} %, rates {rates}", flush=True)
    program = spikedeploy.convert(model)
    cell, engine = OnnxRunner(onnx_cell.export(program), batch=args.batch), EventEngine(program, batch=args.batch)

    def afresh(x: np.ndarray) -> Any:
        engine.reset()
        return engine.run(x)

    by_cell, seconds = answers(cell.run, images, args.batch)
    by_events, _ = answers(afresh, images[: args.events], args.batch)
    cell_accuracy = 100 * float((by_cell == labels[: len(by_cell)]).mean())
    rows = [
        ("published accuracy, 2 layers of 400, trained on a GPU, %", PUBLISHED),
        ("test images", len(by_cell)),
        ("parallel model, accuracy, %", accuracy),
        ("ONNX step cell in ONNX Runtime, accuracy, %", cell_accuracy),
        ("difference, points", cell_accuracy - accuracy),
        ("sparsity (share of neurons silent per step), %", 100 * (1 - sum(rates.values()) / len(rates))),
        *((f"firing rate of {name}, %", 100 * rate) for name, rate in rates.items()),
        (
            f"event-driven engine: same answer as the cell on {len(by_events)} images, %",
            100 * (by_events == by_cell[: len(by_events)]).mean(),
        ),
        ("parameters", sum(p.numel() for p in model.parameters())),
        ("step cell, microseconds per pixel and image", 1e6 * seconds / (784 * len(by_cell))),
    ]
    with args.result.open("w", newline="") as file:
        file.write(f"# python examples/sequential_mnist.py deploy mnist.npz {args.model.name} --batch {args.batch}; {args.note}\n")
        csv.writer(file).writerows([("what", "value"), *((name, f"{value:.5g}") for name, value in rows)])
    print(*(f"{name}: {value:.5g}" for name, value in rows), sep="\n")


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the data file."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "deploy"))
    parser.add_argument("data", type=Path, help="npz file with x_train, y_train, x_test, y_test")
    parser.add_argument("model", type=Path, nargs="?", help="the file that train wrote: what to deploy, or where to go on training")
    parser.add_argument("--out", type=Path, default=Path("smnist.pt"))
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--states", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--ceiling", type=float, default=0.12, help="firing rate above which --quiet costs")
    parser.add_argument("--quiet", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=10000, help="deploy: how many test images")
    parser.add_argument("--events", type=int, default=500, help="deploy: how many of them also run in the event-driven engine")
    parser.add_argument("--result", type=Path, default=Path("sequential_mnist.csv"), help="deploy: where the numbers go")
    parser.add_argument("--note", default="", help="deploy: a remark for the head of that file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    data = read(args.data)
    if args.what == "deploy" and args.model is None:
        parser.error("deploy needs the file that train wrote")
    (train if args.what == "train" else deploy)(args, data)


if __name__ == "__main__":
    main()
