"""The same cells in other runtimes: how many spikes differ from the reference loop, on dyadic models and on real-valued ones.

    python benchmarks/onnx_clients/run.py [--node FOLDER] [--openvino PYTHON] [--tract PYTHON] [--iree PYTHON] [--out CSV]

FOLDER holds node_modules with onnxruntime-node and onnxruntime-web; PYTHON an interpreter with the package. What is not given is left out.
A client gets a folder: `cell.onnx`, `input.bin` (T, B, ...), `job.json` (steps, input and state shapes, output names); it starts every
state at zero, feeds each present state back as the past one, and writes `output{i}.bin`, `(T, B, ...)` float32, in the order of the names.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from onnx_zoo import DYADIC, ZOO, Builder, samples

from spikedeploy.exporters.onnx_cell import export
from spikedeploy.program import Program
from spikedeploy.readers.onnx_info import read_cell
from spikedeploy.runtime.onnx_runner import OnnxRunner
from spikedeploy.runtime.reference import run

STEPS, BATCH = 60, 2
HERE = Path(__file__).parent
Client = Callable[[Path], str]


def prepare(folder: Path, model: Program, x: np.ndarray) -> list[str]:
    """Write what a client needs; returns the names of the outputs: all spiking layers, then all states."""
    data = export(model, spikes=True)
    _, _, info = read_cell(data)
    kind = "int64" if info.input_kind == "index" else "float32"
    outputs = [*(f"spikes.{s.layer}" for s in info.spikes), *(s.present for s in info.states)]
    states = [{"past": s.past, "present": s.present, "dims": [BATCH, *s.shape]} for s in info.states]
    given = {"type": kind, "dims": [BATCH, *info.input_shape]}
    (folder / "cell.onnx").write_bytes(data)
    x.astype(kind).tofile(folder / "input.bin")
    order = [item.name for item in onnx.load_from_string(data).graph.output]
    job = {"folder": str(folder), "steps": len(x), "input": given, "states": states, "outputs": outputs, "graph_outputs": order}
    (folder / "job.json").write_text(json.dumps(job))
    return outputs


def in_process(folder: Path, session: Callable[[bytes], object], version: str) -> str:
    """A Python runtime with ONNX Runtime's `run`."""
    job = json.loads((folder / "job.json").read_text())
    runtime, names = session((folder / "cell.onnx").read_bytes()), job["outputs"]
    x = np.fromfile(folder / "input.bin", job["input"]["type"]).reshape(job["steps"], *job["input"]["dims"])
    states = {s["past"]: np.zeros(s["dims"], np.float32) for s in job["states"]}
    series = []
    for value in x:
        found = dict(zip(names, runtime.run(names, {"input": value, **states}), strict=True))
        states = {s["past"]: found[s["present"]] for s in job["states"]}
        series.append(found)
    for index, name in enumerate(names):
        np.stack([found[name] for found in series]).astype(np.float32).tofile(folder / f"output{index}.bin")
    return version


def outside(command: list[str], cwd: Path | None, folder: Path) -> str:
    """A runtime in a process of its own; it prints its version."""
    done = subprocess.run([*command, str(folder / "job.json")], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"exit {done.returncode}")
    return done.stdout.strip().splitlines()[-1]


def clients(node: Path | None, **pythons: Path | None) -> Mapping[str, Client]:
    """The runtimes at hand."""

    def ort(data: bytes) -> object:
        return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def evaluator(data: bytes) -> object:
        return ReferenceEvaluator(onnx.load_from_string(data))

    found: dict[str, Client] = {
        "ONNX Runtime (Python)": lambda folder: in_process(folder, ort, onnxruntime.__version__),
        "onnx.reference": lambda folder: in_process(folder, evaluator, onnx.__version__),
    }
    if node:
        for package in ("onnxruntime-node", "onnxruntime-web"):
            script = str(HERE.absolute() / "client_node.js")
            found[package] = partial(outside, ["node", script, package], node)
    commands = {name: [str(python), str(HERE / f"client_{name.lower()}.py")] for name, python in pythons.items() if python}
    found |= {name: partial(outside, command, None) for name, command in commands.items()}
    if "OpenVINO" in commands:
        found["OpenVINO, states hidden"] = partial(outside, [*commands["OpenVINO"], "stateful"], None)
    return found


def compare(folder: Path, model: Program, x: np.ndarray, names: list[str]) -> dict[str, float]:
    """Spikes that differ from the reference loop in float32, and outside the margin from the one in float64; and how far states are off."""
    layers, states = [s.name for s in model.spiking], [n for n in names if n.startswith("present_state.")]
    info = OnnxRunner(export(model)).info
    membranes = {s.layer: s.membrane for s in info.spikes}
    record = [*layers, *membranes.values()]
    single, double = run(model, x, dtype=np.float32, record=record), run(model, x, record=record)
    found = {n: np.fromfile(folder / f"output{i}.bin", np.float32) for i, n in enumerate(names)}
    total = differ = clear = 0
    for layer in layers:
        spikes, u = found[f"spikes.{layer}"].reshape(single.wires[layer].shape), double.wires[membranes[layer]]
        theta = np.float64(next(s.threshold[0] for s in info.spikes if s.layer == layer))
        far = np.abs(u - theta) > 1e-4 * max(1.0, np.abs(u).max())
        differ += int(np.count_nonzero(spikes != single.wires[layer]))
        clear += int(np.count_nonzero((spikes != double.wires[layer]) & far))
        total += spikes.size
    worst, bits = 0.0, True
    for name in states:
        layer, key = next((s.layer, s.name) for s in info.states if s.present == name)
        last = found[name].reshape(len(x), *single.states[layer][key].shape)[-1]
        worst = max(worst, float(np.abs(last - single.states[layer][key]).max()))
        bits &= last.tobytes() == single.states[layer][key].astype(np.float32).tobytes()
    return {"spikes": total, "differ": differ, "outside_margin": clear, "state_error": worst, "bit_equal": float(bits)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--node", type=Path)
    for name in ("openvino", "tract", "iree"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/onnx_clients.csv"))
    options = parser.parse_args()
    rows = []
    for client, step in clients(options.node, OpenVINO=options.openvino, tract=options.tract, IREE=options.iree).items():
        for name in ZOO:
            for exact in (False, True)[: 1 + (name in DYADIC)]:
                model = ZOO[name](Builder(3, dyadic=exact))
                x = samples(model, STEPS, BATCH, dyadic=exact)
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    names = prepare(folder, model, x)
                    try:
                        version = step(folder)
                        found = compare(folder, model, x, names)
                        row = [
                            *(int(found[k]) for k in ("spikes", "differ", "outside_margin")),
                            f"{found['state_error']:.1e}",
                            bool(found["bit_equal"]),
                        ]
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        version, row = "", ["", "", "", "", f"fails: {error}"]
                rows.append([client, version, name, "dyadic" if exact else "real", *row])
                print(*rows[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    header = [
        "client",
        "version",
        "model",
        "numbers",
        "decisions",
        "spikes_that_differ",
        "outside_the_margin",
        "worst_state_error",
        "states_bit_equal",
    ]
    with options.out.open("w", newline="") as stream:
        stream.write(
            "# python benchmarks/onnx_clients/run.py --node FOLDER --openvino PYTHON --tract PYTHON --iree PYTHON\n"
            f"# {STEPS} steps, batch {BATCH}, against the reference loop\n"
        )
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
