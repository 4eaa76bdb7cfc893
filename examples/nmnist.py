"""Event camera digits: train a small convolutional network on N-MNIST over whole sequences, run it on address events.

The file is an .npz with, for `train` and `test`, all events one recording after another: `{part}_x`, `_y` (0 to 33), `_p` (polarity),
`_t` (microseconds), then
`_n` (events per recording) and `_label`.

    python examples/nmnist.py nmnist.npz --epochs 8 --out out/nmnist

Leaves the model, the test recordings as the command line takes them, and what was measured:

    spikedeploy run out/nmnist/nmnist.pt --input out/nmnist/test.npz --engine events
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

import spikedeploy
from spikedeploy.nn import Leaky, OverTime
from spikedeploy.program import Program
from spikedeploy.report import energy, measure
from spikedeploy.runtime import EventEngine, Events, reference

SIDE, DURATION = 34, 300_000


class Net(nn.Module):
    """2 x 34 x 34 events -> 8 x 15 x 15 -> 16 x 7 x 7 leaky neurons -> 10 classes; the answer is the neuron that fired most."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.conv1 = OverTime(nn.Conv2d(2, 8, 5, stride=2, bias=False))
        self.lif1 = Leaky(beta=beta, reset_mechanism="subtract")
        self.conv2 = OverTime(nn.Conv2d(8, 16, 3, stride=2, bias=False))
        self.lif2 = Leaky(beta=beta, reset_mechanism="subtract")
        self.fc = nn.Linear(16 * 7 * 7, 10)
        self.lif3 = Leaky(beta=beta, reset_mechanism="subtract")

    def forward(self, x: Tensor) -> Tensor:
        """Events `(T, B, 2, 34, 34)` of 0 and 1 -> spikes per class `(B, 10)`."""
        spikes, _ = self.lif1(self.conv1(x))
        spikes, _ = self.lif2(self.conv2(spikes))
        spikes, _ = self.lif3(self.fc(spikes.flatten(2)))
        return spikes.sum(dim=0)


def recordings(data: Any, part: str, steps: int) -> tuple[list[Events], np.ndarray]:
    """Each recording as events at `steps` steps of equal length, at most one event per place and step; and the labels."""
    found, first = [], 0
    x, y, p, t = (data[f"{part}_{name}"].astype(np.int64) for name in "xypt")
    for count in data[f"{part}_n"]:
        mine = slice(first, first + int(count))
        first += int(count)
        step = t[mine] * steps // DURATION
        index = (p[mine] * SIDE + y[mine]) * SIDE + x[mine]
        inside = step < steps
        place = np.unique(step[inside] * 2 * SIDE * SIDE + index[inside])
        found.append(Events(place % (2 * SIDE * SIDE), place // (2 * SIDE * SIDE), steps))
    return found, data[f"{part}_label"].astype(np.int64)


def write(path: Path, events: list[Events], labels: np.ndarray) -> None:
    """One file of address events, `docs/formats.md`; a sample for each recording."""
    np.savez_compressed(
        path,
        t=np.concatenate([e.time for e in events]).astype(np.uint16),
        index=np.concatenate([e.index for e in events]).astype(np.uint16),
        sample=np.repeat(np.arange(len(events), dtype=np.uint16), [len(e.time) for e in events]),
        shape=(2, SIDE, SIDE),
        steps=events[0].steps,
        batch=len(events),
        labels=labels,
    )


def dense(events: Events) -> np.ndarray:
    x = np.zeros((events.steps, 2 * SIDE * SIDE), np.float32)
    x[events.time, events.index] = 1
    return x.reshape(events.steps, 2, SIDE, SIDE)


def train(events: list[Events], labels: np.ndarray, epochs: int, seed: int) -> Net:
    torch.manual_seed(seed)
    net, rng = Net(0.95), np.random.default_rng(seed)
    with torch.no_grad():  # sparse input: without this the first layer would stay silent
        net.conv1.module.weight.mul_(3)
        net.conv2.module.weight.mul_(3)
        net.fc.weight.mul_(3)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(epochs):
        right, total = 0, 0.0
        for batch in np.array_split(rng.permutation(len(events)), len(events) // 32):
            x = torch.from_numpy(np.stack([dense(events[i]) for i in batch], axis=1))
            counts = net(x)
            target = torch.from_numpy(labels[batch])
            loss = nn.functional.cross_entropy(counts / 4, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            right += int((counts.argmax(1) == target).sum())
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1}: loss {total / len(events):.3f}, training accuracy {right / len(events):.1%}", flush=True)
    return net.eval()


def accuracy(program: Program, events: list[Events], labels: np.ndarray, **options: Any) -> float:
    """Straight from address events."""
    engine, right = EventEngine(program, **options), 0
    for recording, label in zip(events, labels, strict=True):
        engine.reset()
        right += int(next(iter(engine.run(recording).outputs.values()))[0].argmax() == label)
    return right / len(events)


def microseconds(program: Program, events: list[Events], cell: bytes) -> dict[str, float]:
    """Median time of a step: the engine on events and on dense frames, ONNX Runtime's cell under IOBinding; in turns, each as often the
    first, because whoever comes first finds its weights outside of the cache."""
    engine, cell_on = EventEngine(program), bound_cell(cell)
    forms: dict[str, Callable[[Events, np.ndarray], object]] = {
        "events": lambda recording, x: engine.run(recording),
        "dense": lambda recording, x: engine.run(x),
        "onnxruntime": lambda recording, x: cell_on(x),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn, recording in enumerate(events):
        x, names = dense(recording)[:, None], list(forms)
        for name in names[turn % 3 :] + names[: turn % 3]:
            begin = time.perf_counter()
            forms[name](recording, x)
            times[name].append((time.perf_counter() - begin) / recording.steps * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def bound_cell(cell: bytes) -> Callable[[np.ndarray], None]:
    """ONNX Runtime, step after step on `(T, 1, 2, 34, 34)`, inputs and outputs bound once; its states stay at zero, its work the same."""
    from spikedeploy.runtime.onnx_session import open_session

    session = open_session(cell)
    bind, kept, frame = session.io_binding(), [], np.zeros((1, 2, SIDE, SIDE), np.float32)
    for info in session.get_inputs():
        kept.append(frame if info.name == "input" else np.zeros([1, *info.shape[1:]], np.float32))
        bind.bind_input(info.name, "cpu", 0, np.float32, kept[-1].shape, kept[-1].ctypes.data)
    for info in session.get_outputs():
        kept.append(np.zeros([1, *info.shape[1:]], np.float32))
        bind.bind_output(info.name, "cpu", 0, np.float32, kept[-1].shape, kept[-1].ctypes.data)

    def run(x: np.ndarray) -> None:
        for now in x:
            frame[:] = now
            session.run_with_iobinding(bind, None)
        assert kept  # the arrays that are bound

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/nmnist"))
    parser.add_argument("--model", type=Path, help="a model that this script saved, instead of training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = np.load(arguments.data)
    test, labels = recordings(data, "test", arguments.steps)
    write(arguments.out / "test.npz", test, labels)
    example = torch.from_numpy(np.stack([dense(e) for e in test[:2]], axis=1))
    if arguments.model is None:
        net: nn.Module = train(*recordings(data, "train", arguments.steps), arguments.epochs, arguments.seed)
        spikedeploy.save(net, arguments.out / "nmnist.pt", example)
    else:
        net = spikedeploy.load(arguments.model)
    source = f"--epochs {arguments.epochs} --seed {arguments.seed}" if arguments.model is None else "--model MODEL"
    command = f"python examples/nmnist.py DATA {source} --steps {arguments.steps}"
    evaluate(spikedeploy.convert(net, example), test, labels, arguments.out, arguments.steps, command)


def evaluate(program: Program, test: list[Events], labels: np.ndarray, out: Path, steps: int, command: str) -> None:
    from spikedeploy.exporters.onnx_cell import export

    x = np.stack([dense(e) for e in test], axis=1)
    exact = reference.run(program, x[:, :20], dtype=np.float32)
    engine = EventEngine(program, 20).run(x[:, :20])
    report = measure(program, x)
    times = microseconds(program, test, export(program, static_batch=1))
    total = report.total
    row = {
        "steps": steps, "test recordings": len(test), "accuracy": accuracy(program, test, labels), "accuracy int8": accuracy(program,
        test, labels, weights="int8"),
        "spikes as the reference in float32, 20 recordings": exact.spikes == engine.spikes,
        "input events": round(report.input_events / report.input_values, 5),
        **{f"rate {layer.name}": round(layer.rate or 0, 5) for layer in report.spiking}, "ACs": total.acs, "MACs": total.macs,
        "dense MACs": total.dense,
        **{f"microseconds a step, {name}": round(value, 2) for name, value in times.items()},
        "times onnxruntime": round(times["onnxruntime"] / times["events"], 1), "pJ of dense, 45 nm": energy(report).of_dense,
    }  # fmt: skip
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    with (out / "nmnist.csv").open("w", newline="") as file:
        file.write(f"# {command}\n# {model}, {os.cpu_count()} cores, one thread\n")
        table = csv.writer(file)
        table.writerows(row.items())
    print("\n".join(f"{key}: {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
