"""Steps a cell in OpenVINO: `python client_openvino.py [stateful] JOB.json`. The protocol is in run.py.

With `stateful` the states are hidden inside the model (OpenVINO's MakeStateful), as its own runtime likes them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino as ov


def main() -> None:
    job = json.loads(Path(sys.argv[-1]).read_text())
    hidden = "stateful" in sys.argv
    folder, core = Path(job["folder"]), ov.Core()
    model = core.read_model(folder / "cell.onnx")
    shapes = {"input": job["input"]["dims"]} | {s["past"]: s["dims"] for s in job["states"]}
    model.reshape({model.input(name): shape for name, shape in shapes.items()})
    if hidden:
        from openvino._offline_transformations import apply_make_stateful_transformation

        apply_make_stateful_transformation(model, {s["past"]: s["present"] for s in job["states"]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    request = compiled.create_infer_request()
    x = np.fromfile(folder / "input.bin", job["input"]["type"]).reshape(job["steps"], *job["input"]["dims"])
    states = {} if hidden else {s["past"]: np.zeros(s["dims"], np.float32) for s in job["states"]}
    series: dict[str, list[np.ndarray]] = {name: [] for name in job["outputs"]}
    for t in range(job["steps"]):
        request.infer({"input": x[t], **states})
        kept = {variable.name: variable.state.data for variable in request.query_state()} if hidden else {}
        for name in job["outputs"]:
            inside = [value for variable, value in kept.items() if name in variable]
            series[name].append((inside[0] if inside else request.get_tensor(name).data).copy())
        if not hidden:
            states = {s["past"]: request.get_tensor(s["present"]).data.copy() for s in job["states"]}
    for index, name in enumerate(job["outputs"]):
        np.stack(series[name]).astype(np.float32).tofile(folder / f"output{index}.bin")
    print(ov.__version__.split("-")[0])


main()
