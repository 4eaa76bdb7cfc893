"""Steps a cell in IREE, compiled for this processor: `python client_iree.py JOB.json`. The protocol is in run.py."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import iree.runtime
import numpy as np


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, tools = Path(job["folder"]), Path(sys.executable).parent
    steps = [
        [tools / "iree-import-onnx", "cell.onnx", "-o", "cell.mlir"],
        [
            tools / "iree-compile",
            "cell.mlir",
            "--iree-hal-target-device=local",
            "--iree-hal-local-target-device-backends=llvm-cpu",
            "-o",
            "cell.vmfb",
        ],
    ]
    for command in steps:
        subprocess.run([str(part) for part in command], cwd=folder, check=True, capture_output=True, timeout=200)
    module = iree.runtime.load_vm_flatbuffer_file(str(folder / "cell.vmfb"), driver="local-sync")
    function = module["cell"]
    x = np.fromfile(folder / "input.bin", job["input"]["type"]).reshape(job["steps"], *job["input"]["dims"])
    states = [np.zeros(s["dims"], np.float32) for s in job["states"]]
    order = job["graph_outputs"]
    series: dict[str, list[np.ndarray]] = {name: [] for name in job["outputs"]}
    for value in x:
        result = function(value, *states)
        found = dict(zip(order, (np.array(item) for item in (result if isinstance(result, (tuple, list)) else [result])), strict=True))
        for name in job["outputs"]:
            series[name].append(found[name])
        states = [found[s["present"]] for s in job["states"]]
    for index, name in enumerate(job["outputs"]):
        np.stack(series[name]).astype(np.float32).tofile(folder / f"output{index}.bin")
    print(version("iree-base-runtime"))


main()
