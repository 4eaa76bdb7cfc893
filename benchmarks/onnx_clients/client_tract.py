"""Steps a cell in tract: `python client_tract.py JOB.json`. The protocol is in run.py."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tract


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    model = tract.onnx().load(str(folder / "cell.onnx"))
    names = [model.input_name(index) for index in range(model.input_count())]
    shapes = {"input": (job["input"]["dims"], "i64" if job["input"]["type"] == "int64" else "f32")}
    shapes |= {s["past"]: (s["dims"], "f32") for s in job["states"]}
    for index, name in enumerate(names):
        dims, kind = shapes[name]
        model.set_input_fact(index, ",".join([*map(str, dims), kind]))
    for index in range(model.output_count()):
        model.set_output_fact(index, None)  # what follows from the inputs, whatever the file says of the batch
    order = [model.output_name(index) for index in range(model.output_count())]
    runnable = model.into_model().into_runnable()
    x = np.fromfile(folder / "input.bin", job["input"]["type"]).reshape(job["steps"], *job["input"]["dims"])
    now = {s["past"]: np.zeros(s["dims"], np.float32) for s in job["states"]}
    series: dict[str, list[np.ndarray]] = {name: [] for name in job["outputs"]}
    for value in x:
        found = dict(zip(order, runnable.run([({"input": value} | now)[name] for name in names]), strict=True))
        found = {name: tensor.to_numpy() for name, tensor in found.items()}
        now = {s["past"]: found[s["present"]].copy() for s in job["states"]}
        for name in job["outputs"]:
            series[name].append(found[name].copy())
    for index, name in enumerate(job["outputs"]):
        np.stack(series[name]).astype(np.float32).tofile(folder / f"output{index}.bin")
    print(version("tract"))


main()
