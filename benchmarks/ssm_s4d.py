"""S4D: training time as a convolution and as a scan, and how far the step is from both: `python benchmarks/ssm_s4d.py`.

Forward and backward of one layer in float32, one thread, sides interleaved; and the largest difference of the recurrence from the parallel
form over 16,384 steps, relative to the largest value (targets 1e-4 in float32, 1e-10 in float64).
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from pathlib import Path
from statistics import median

import torch

from spikedeploy.nn.s4d import S4D

SIZES = ((784, 64, 64, 32), (784, 64, 64, 64), (1024, 16, 128, 64), (4096, 8, 64, 64))
FORMS = ("fft", "scan")


def seconds(layer: S4D, x: torch.Tensor) -> float:
    begin = time.perf_counter()
    layer(x).backward(torch.ones_like(x))
    return time.perf_counter() - begin


def apart(form: str, dtype: torch.dtype, steps: int = 16384) -> float:
    """Recurrence against parallel form."""
    torch.manual_seed(0)
    layer, x = S4D(16, 64, form=form).to(dtype), torch.randn(steps, 1, 16, dtype=dtype)
    with torch.no_grad():
        stepped = layer.rollout(x)
        return float((layer(x) - stepped).abs().max() / stepped.abs().max())


def machine() -> str:
    """Processor and versions, no names."""
    lines = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{lines[0] if lines else platform.machine()}, 1 thread, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="the first is warm-up")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ssm_s4d.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[object, ...]] = [("measure", "T", "batch", "H", "N", *FORMS, "fft / scan")]
    for steps, batch, features, states in SIZES:
        layer, x = S4D(features, states), torch.randn(steps, batch, features, requires_grad=True)
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(args.rounds):
            for form in FORMS:
                layer.form = form
                times[form].append(seconds(layer, x))
        fft, scan = (median(times[form][1:]) for form in FORMS)
        rows.append(("seconds, forward and backward", steps, batch, features, states, f"{fft:.4g}", f"{scan:.4g}", f"{fft / scan:.3g}"))
        print(rows[-1], flush=True)
    for dtype, target in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        errors = [f"{apart(form, dtype):.2g}" for form in FORMS]
        rows.append((f"step against parallel form, {str(dtype)[6:]}, target {target:g}", 16384, 1, 16, 64, *errors, ""))
        print(rows[-1], flush=True)
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("w", newline="") as file:
        file.write(f"# python benchmarks/ssm_s4d.py; medians; {machine()}\n")
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
