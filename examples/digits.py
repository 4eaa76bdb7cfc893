"""From training to a verified NIR file in two minutes, on scikit-learn's handwritten digits.

Each image of 8 x 8 pixels is shown for T steps as random spikes: a pixel fires with a probability that is its brightness. A network of two
layers of snnTorch's parallel neurons is trained over whole sequences at once, and deployed as a NIR graph that runs step by step.

    python examples/digits.py --out out/demo
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
import warnings
from pathlib import Path

import numpy as np
import snntorch
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import spikedeploy
from spikedeploy.exporters import nir
from spikedeploy.readers.nir import read as read_nir
from spikedeploy.report import energy, load_tables, measure
from spikedeploy.report.evidence import Evidence, bands_of
from spikedeploy.report.html import html
from spikedeploy.runtime import EventEngine, reference
from spikedeploy.verify import Certificate, require, verify

CLASSES, PIXELS, BRIGHTEST = 10, 64, 16.0


class Digits(nn.Module):
    """64 pixels -> 128 leaky neurons -> 10 leaky neurons; the answer is the neuron that fired most."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.hidden = snntorch.LinearLeaky(beta=0.8, in_features=PIXELS, out_features=hidden)
        self.readout = nn.Linear(hidden, CLASSES)
        self.out = snntorch.StateLeaky(beta=torch.linspace(0.7, 0.9, CLASSES), channels=CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes `(T, B, 64)` -> spikes per class, `(B, 10)`."""
        spikes, _ = self.hidden(x)
        spikes, _ = self.out(self.readout(spikes))
        return spikes.sum(dim=0)


def encode(images: Tensor, steps: int, random: torch.Generator) -> Tensor:
    """Images `(B, 64)` in [0, 1] as spikes `(T, B, 64)`."""
    return (torch.rand(steps, *images.shape, generator=random) < images).float()


def split(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images and labels; a quarter is held out."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = torch.from_numpy(digits.data[order] / BRIGHTEST).float()
    labels = torch.from_numpy(digits.target[order]).long()
    held_out = len(order) // 4
    return images[held_out:], labels[held_out:], images[:held_out], labels[:held_out]


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int, epochs: int, random: torch.Generator) -> None:
    """Cross-entropy on the spike counts; the whole sequence in one forward pass."""
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images), generator=random).split(64):
            loss = nn.functional.cross_entropy(model(encode(images[batch], steps, random)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if (epoch + 1) % 5 == 0:
            print(f"  epoch {epoch + 1:2d}: loss {loss.item():.3f}", flush=True)


def accuracy(counts: Tensor | np.ndarray, labels: Tensor) -> float:
    """Share of samples whose largest count is at the label."""
    return float((torch.as_tensor(counts).argmax(dim=1) == labels).double().mean())


def third_parties(path: Path, spikes: np.ndarray, layer: str) -> dict[str, str]:
    """The same file in the NIR importers that are installed here: spikes of `layer` that differ, out of all."""
    results = {}
    for name, run in {"norse": run_norse, "snntorch": run_snntorch}.items():
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")  # of theirs
                found = run(path, spikes)
        except ImportError:
            results[name] = "not installed"
            continue
        wanted = reference.run(read_nir(path), spikes, dtype=np.float32, record=[layer]).wires[layer]
        results[name] = f"{int((found != wanted).sum())} of {wanted.size:,} spikes differ"
    return results


def run_norse(path: Path, spikes: np.ndarray) -> np.ndarray:
    """norse reads the graph and goes through it step by step."""
    import nir as nir_library
    import norse.torch as norse

    network = norse.from_nir(nir_library.read(path), dt=1e-4)
    state, found = None, []
    with torch.no_grad():
        for x in torch.from_numpy(spikes):
            y, state = network(x, state)
            found.append(y.numpy())
    return np.stack(found)


def run_snntorch(path: Path, spikes: np.ndarray) -> np.ndarray:
    """snnTorch's own importer."""
    import nir as nir_library
    from snntorch.import_nir import import_from_nir

    network = import_from_nir(nir_library.read(path))
    state, found = None, []
    with torch.no_grad():
        for x in torch.from_numpy(spikes):
            y, state = network(x, state)
            found.append(y.numpy())
    return np.stack(found)


def show(certificate: Certificate) -> None:
    """The verdict, layer by layer, with how sparse each is."""
    for check in certificate.layers:
        if "reference" not in check.party:
            counts = f"{check.decisions:9,} decisions, {check.mismatches} mismatches, {1 - check.rate:.1%} silent"
            print(f"  {check.layer:8s} {check.party:28s} {counts}")
    print(f"  {certificate.verdict}: {certificate.mismatches} spike mismatches")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where the files go")
    parser.add_argument("--steps", type=int, default=12, help="time steps per image")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    random = torch.Generator().manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    print(f"training on {options.steps} steps per image")
    train_x, train_y, test_x, test_y = split(options.seed)
    model = Digits()
    train(model, train_x, train_y, options.steps, options.epochs, random)
    model.eval()

    test = encode(test_x, options.steps, random)
    with torch.no_grad():
        trained = accuracy(model(test), test_y)
    files = {name: options.out / name for name in ("digits.pt", "digits.nir", "test.npz", "certificate.json")}
    spikedeploy.save(model, files["digits.pt"], test[:, :1])
    np.savez_compressed(files["test.npz"], input=test.numpy(), labels=test_y.numpy())
    print("exporting to NIR")
    program = spikedeploy.convert(model, test[:, :1])
    nir.write(program, files["digits.nir"])

    print(f"verifying on all {len(test_y)} held-out images")
    certificate = require(verify(files["digits.pt"], files["digits.nir"], test.numpy(), input_source=f"{files['test.npz']}"))
    files["certificate.json"].write_text(certificate.to_json())
    show(certificate)
    deployable = read_nir(files["digits.nir"])
    run = reference.run(deployable, test.numpy(), dtype=np.float32, record=["hidden", "out"])
    events = EventEngine(deployable, batch=len(test_y)).run(test.numpy(), record=["hidden", "out"])
    differ = sum(int((events.wires[name] != wire).sum()) for name, wire in run.wires.items())
    print(f"  event engine: {differ} of {sum(run.decisions.values()):,} spikes differ")
    deployed = accuracy(next(iter(run.outputs.values())), test_y)
    for name, result in third_parties(files["digits.nir"], test.numpy(), "out").items():
        print(f"  {name}: {result}")

    counted = measure(program, test.numpy())
    evidence = Evidence(certificate.as_dict(), bands_of(program, test.numpy()), *test.shape[:2])
    files["report.html"] = options.out / "report.html"
    files["report.html"].write_text(html(counted, [energy(counted, name) for name in load_tables()], evidence, "digits.pt"))

    spikes, chances = sum(run.spikes.values()), sum(run.decisions.values())
    print(f"accuracy on held-out digits: {trained:.1%} trained (parallel), {deployed:.1%} deployed (step by step)")
    print(f"sparsity: {1 - spikes / chances:.1%} of neuron steps are silent")
    print(f"operations: {counted.total.acs + counted.total.macs:,} where a dense network does {counted.total.dense:,}")
    for path in files.values():
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    print(f"done in {time.perf_counter() - began:.0f} s")
    if trained < 0.9 or deployed < 0.9:
        raise SystemExit("accuracy is below 90 %")


if __name__ == "__main__":
    main()
