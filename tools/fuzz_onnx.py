"""Damaged ONNX files against the reader and the runner: `python tools/fuzz_onnx.py [--count 5000] [--seed 0]`.

Every file is a cell or a sequence model with random bytes changed, or with random attributes, operators, connections and constants.
It must either run or be refused with `BadInput`, within two seconds. The last file stays in FOLDER, in case this process itself dies.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from onnx_zoo import ZOO, Builder, samples

from spikedeploy.errors import BadInput
from spikedeploy.exporters.onnx_cell import export
from spikedeploy.readers.onnx_guard import OPERATORS
from spikedeploy.runtime.onnx_runner import OnnxRunner
from spikedeploy.runtime.onnx_sequence import SequenceRunner

NUMBERS = [0, -1, 1, 2, 3, -2, 7, 100, (1 << 31) - 1, 1 << 31, 1 << 62, -(1 << 62), -(1 << 63)]
NAMES = ["axis", "axes", "group", "strides", "pads", "dilations", "keepdims", "kernel_shape", "to", "alpha", "transA"]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, flipped, lost, added or copied."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        place, other, size = (int(rng.integers(0, len(found))) for _ in range(3))
        size = size % 8 + 1
        kind = rng.integers(0, 5)
        if kind == 0:
            found[place] = int(rng.integers(0, 256))
        elif kind == 1:
            found[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            del found[place : place + size]
        elif kind == 3:
            found[place:place] = rng.bytes(size)
        else:
            found[place : place + size] = found[other : other + size]
    return bytes(found)


def rewired(data: bytes, rng: np.random.Generator) -> bytes:
    """A valid file with another meaning, or none."""
    model = onnx.load_from_string(data)
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    graph = bodies[0] if bodies and rng.random() < 0.8 else model.graph
    for _ in range(int(rng.integers(1, 4))):
        change(graph, graph.node[int(rng.integers(0, len(graph.node)))], rng)
    return model.SerializeToString()


def change(graph: onnx.GraphProto, node: onnx.NodeProto, rng: np.random.Generator) -> None:
    kind, number = int(rng.integers(0, 6)), NUMBERS[int(rng.integers(0, len(NUMBERS)))]
    whole = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64]
    if kind == 0:
        node.op_type = sorted(OPERATORS)[int(rng.integers(0, len(OPERATORS)))]
    elif kind == 1 and node.input:
        names = [o for n in graph.node for o in n.output] + [t.name for t in (*graph.initializer, *graph.input)]
        node.input[int(rng.integers(0, len(node.input)))] = names[int(rng.integers(0, len(names)))]
    elif kind == 2 and whole:
        tensor = whole[int(rng.integers(0, len(whole)))]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[int(rng.integers(0, values.size))] = number
        tensor.raw_data = values.tobytes()
    elif kind == 3 and node.input:
        del node.input[int(rng.integers(0, len(node.input)))]
    elif kind == 4 and node.attribute:
        del node.attribute[int(rng.integers(0, len(node.attribute)))]
    else:
        value = [number] * int(rng.integers(1, 5)) if rng.random() < 0.5 else number
        node.attribute.append(onnx.helper.make_attribute(NAMES[int(rng.integers(0, len(NAMES)))], value))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    models = [(ZOO[name](Builder(0)), whole) for name in ZOO for whole in (False, True)]
    files = [(export(model, sequence=whole), samples(model, 2, 1), whole) for model, whole in models]
    ran, refused, failures, slowest = 0, 0, 0, 0.0
    for index in range(options.count):
        rng = np.random.default_rng([options.seed, index])
        original, x, whole = files[index % len(files)]
        data = (damaged, rewired)[index // len(files) % 2](original, rng)
        (options.folder / f"fuzz_onnx_{options.seed}.onnx").write_bytes(data)
        start = time.perf_counter()
        try:
            (SequenceRunner if whole else OnnxRunner)(data).run(x)
            ran += 1
        except BadInput:
            refused += 1
        except Exception as error:
            failures += 1
            print(f"file {index}: {type(error).__name__}: {error}")
        slowest = max(slowest, time.perf_counter() - start)
    print(f"{options.count} files: {ran} ran, {refused} refused, {failures} failed otherwise; the slowest took {slowest:.2f} s")
    sys.exit(failures > 0 or slowest > 2)


if __name__ == "__main__":
    main()
