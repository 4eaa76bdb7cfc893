"""Every profile in the software it is made for: spikes that differ from the reference runtime, of how many.

    python benchmarks/nir_consumers.py                                    consumers that this interpreter has
    python benchmarks/nir_consumers.py --with spyx=PYTHON --with sinabs=PYTHON    ... and those that another interpreter has

Several consumers pin versions that exclude each other, so each may live in an environment of its own. Input is random, T = 200,
B = 3; the reference runs in the consumer's precision. Writes benchmarks/results/nir_consumers.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
STEPS, BATCH = 200, 3


def stepwise(module: Any, x: Any, double: bool = False) -> Any:
    """A torch module over time, its state handed on."""
    import numpy as np
    import torch

    state, found = None, []
    with torch.no_grad():
        for xt in torch.as_tensor(x, dtype=torch.float64 if double else torch.float32):
            y, state = module(xt, state)
            found.append(y.numpy())
    return np.stack(found)


def norse(graph: Any, x: Any) -> Any:
    import norse.torch

    return stepwise(norse.torch.from_nir(graph, dt=float(graph.metadata["dt"])), x)


def snntorch(graph: Any, x: Any) -> Any:
    from snntorch.import_nir import import_from_nir

    return stepwise(import_from_nir(graph), x)


def spikingjelly(graph: Any, x: Any) -> Any:
    import torch
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return stepwise(import_from_nir(graph, dt=float(graph.metadata["dt"]), dtype=torch.float64), x, double=True)


def spyx(graph: Any, x: Any) -> Any:
    import jax.numpy as jnp
    import numpy as np
    from spyx.nir import from_nir

    return np.asarray(from_nir(graph, jnp.asarray(x), dt=float(graph.metadata["dt"]))[1])


def sinabs(graph: Any, x: Any) -> Any:
    """One run over all steps: sinabs joins batch and time, batch outside."""
    import torch
    from sinabs.nir import from_nir

    steps, batch = x.shape[:2]
    flat = torch.as_tensor(x, dtype=torch.float32).transpose(0, 1).reshape(steps * batch, *x.shape[2:])
    with torch.no_grad():
        y = from_nir(graph, batch_size=batch)(flat)
    y = y[0] if isinstance(y, tuple) else y
    return y.reshape(batch, steps, *y.shape[1:]).transpose(0, 1).numpy()


def rockpool(graph: Any, x: Any) -> Any:
    """One run over all steps, batch outside."""
    import torch
    from rockpool.nn.modules.torch.nir import from_nir

    with torch.no_grad():
        y = from_nir(graph)(torch.as_tensor(x, dtype=torch.float32).transpose(0, 1))
    return (y[0] if isinstance(y, tuple) else y).transpose(0, 1).numpy()


CONSUMERS: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "norse": (norse, ("norse", "generic")),
    "snntorch": (snntorch, ("snntorch", "generic")),
    "spikingjelly": (spikingjelly, ("spikingjelly", "generic")),
    "spyx": (spyx, ("spyx",)),
    "sinabs": (sinabs, ("sinabs",)),
    "rockpool": (rockpool, ("rockpool",)),
}
"""Per consumer: how to run a graph in it, and the profiles it is given."""


def nets() -> dict[str, Any]:
    import nirnets as n

    return {
        "8-16-8, one decay": n.dense((8, 16, 8), (0.9, 0.8)),
        "8-16-8, decay per channel": n.per_channel((8, 16, 8)),
        "9-13-7-3, decay and threshold per channel": n.per_channel((9, 13, 7, 3), thresholds=True),
        "graded spikes": n.dense((6, 9, 4), (0.9, 0.6), amplitude=1.69),
        "convolution, pool": n.conv(),
        "residual": n.residual(),
        "reset to zero": n.reset(),
    }


def write_graphs(consumer: str, folder: Path) -> list[dict[str, Any]]:
    """One row per network and profile; the graph, its input and the spikes it must give go to `folder`."""
    import nirnets as n
    import numpy as np

    from spikedeploy.errors import SpikedeployError
    from spikedeploy.exporters.nir import PROFILES, write
    from spikedeploy.runtime.reference import run

    rows: list[dict[str, Any]] = []
    for name, program in nets().items():
        for profile in CONSUMERS[consumer][1]:
            row = {"consumer": consumer, "profile": profile, "network": name, "said": ""}
            x = n.signal(program, STEPS, BATCH)
            limit = PROFILES[profile].input_range
            x = np.clip(x, -limit, limit) if limit else x
            want = run(program, x, dtype=np.float64 if consumer == "spikingjelly" else np.float32).outputs["spk"] != 0
            row |= {"spikes": int(want.sum()), "decisions": want.size}
            try:
                write(program, folder / f"{len(rows)}.nir", profile=profile)
                np.savez(folder / f"{len(rows)}.npz", x=x, want=want)
            except SpikedeployError as error:
                row["said"] = f"not exported: {error}"
            rows.append(row)
    return rows


def measure(consumer: str, folder: Path) -> dict[str, Any]:
    """What the consumer does with the graphs in `folder`, in this interpreter (which need not have spikedeploy)."""
    import nir
    import numpy as np

    found: dict[str, Any] = {"version": version(consumer), "nir": version("nir")}
    for path in folder.glob("*.nir"):
        case = np.load(path.with_suffix(".npz"))
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = CONSUMERS[consumer][0](nir.read(path), case["x"])
            wrong = (got.reshape(case["want"].shape) != 0) != case["want"]
            found[path.stem] = {"mismatches": int(wrong.sum())}
        except Exception as error:  # whatever a consumer raises is a result
            found[path.stem] = {"said": f"refused by the reader: {type(error).__name__} {str(error)[:80]}"}
    return found


def has(consumer: str) -> bool:
    try:
        version(consumer)
    except PackageNotFoundError:
        return False
    return True


def header() -> list[str]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown")
    return [
        "command: python benchmarks/nir_consumers.py --with CONSUMER=PYTHON ...",
        f"machine: {cpu}, {os.cpu_count()} cores, Python {platform.python_version()}",
        f"random input, T = {STEPS}, B = {BATCH}; mismatches: output spikes that differ from the reference runtime",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--with", dest="others", action="append", default=[], metavar="CONSUMER=PYTHON")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print("FOUND" + json.dumps(measure(options.only[0], Path(options.only[1]))))
        return
    pythons = {name: sys.executable for name in CONSUMERS if has(name)} | dict(item.split("=", 1) for item in options.others)
    rows: list[dict[str, Any]] = []
    for consumer, python in pythons.items():
        with tempfile.TemporaryDirectory() as folder:
            own = write_graphs(consumer, Path(folder))
            done = subprocess.run([python, __file__, "--only", consumer, folder], capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
        if not lines:
            print(f"{consumer}: did not run\n{done.stderr[-500:]}", file=sys.stderr)
            continue
        found = json.loads(lines[0][5:])
        rows += [{**row, "version": found["version"], "nir": found["nir"], **found.get(str(k), {})} for k, row in enumerate(own)]
    path = ROOT / "benchmarks" / "results" / "nir_consumers.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as stream:
        stream.writelines(f"# {line}\n" for line in header())
        table = csv.DictWriter(
            stream, ["consumer", "version", "nir", "profile", "network", "spikes", "decisions", "mismatches", "said"], lineterminator="\n"
        )
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        figure = f"{row.get('mismatches', '-')}/{row['spikes']}"
        print(f"{row['consumer']:13s} {row['profile']:13s} {row['network']:44s} {figure:9s} {row['said']}")


if __name__ == "__main__":
    main()
