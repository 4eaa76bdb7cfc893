"""Associative recall, all models with one budget: accuracy by N and delay, a long stream under both forwards, and the deployed cell.

    python benchmarks/recall.py [--processes 3] [--work DIR] [--quick]

Trains every model of `examples/recall.py` with three seeds (kept in DIR, so that an interrupted run goes on), then writes
`benchmarks/results/recall.csv`, `recall.md` and `recall.png`. `--quick` does all of it with a handful of updates, to see that it runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import snntorch
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))

import recall  # noqa: E402

SEEDS = (0, 1, 2)
PAIRS, DELAYS = (2, 3, 4, 5, 6, 8, 10, 16), (2, 12, 24, 60)
TRAINED_PAIRS, TRAINED_DELAYS = (2, 6), (2, 24)
EPISODES = (12, 24, 48, 96, 768)
RETENTIONS = (None, 5.0, 50.0, 500.0)
Row = dict[str, Any]


def budget(quick: bool) -> dict[str, int]:
    """Updates and batch of each task; the same for every model."""
    if quick:
        return {"updates": 5, "batch": 8, "stream_updates": 3, "stream_batch": 2, "retention_updates": 3, "samples": 20, "items": 768}
    return {
        "updates": 3000, "batch": 64, "stream_updates": 1500, "stream_batch": 32, "retention_updates": 1000, "samples": 1000, "items": 12288
    }  # fmt: skip


def jobs() -> list[tuple[str, str, int]]:
    """(task, model, seed), the long ones first."""
    short = [("episodes", name, seed) for seed in SEEDS for name in recall.MODELS]
    return [("stream", "ours", seed) for seed in SEEDS] + short + [("retention", str(r), 0) for r in RETENTIONS]


def fresh(task: str, name: str, seed: int) -> nn.Module:
    if task != "retention":
        return recall.build(name, seed)
    torch.manual_seed(seed)
    return recall.memory(recall.AssociativeLeaky, 16, None if name == "None" else float(name))


def run(job: tuple[str, str, int], work: Path, quick: bool) -> None:
    """Train one model and keep it, unless it is there."""
    torch.set_num_threads(1)
    task, name, seed = job
    path, limits = work / f"{task}-{name}-{seed}.pt", budget(quick)
    if path.exists():
        return
    model = fresh(task, name, seed)
    if task == "stream":
        batches = recall.streams(seed, limits["stream_batch"], 24)
    else:
        batches = recall.mixed(seed, limits["batch"], TRAINED_PAIRS, TRAINED_DELAYS)
    updates = limits[{"stream": "stream_updates", "retention": "retention_updates", "episodes": "updates"}[task]]
    seconds = recall.train(model, batches, updates, log=lambda line: print(*job, line, flush=True))
    torch.save(model.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".json").write_text(json.dumps({"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}))
    path.with_suffix(".part").rename(path)


def trained(job: tuple[str, str, int], work: Path) -> nn.Module:
    model = fresh(*job)
    model.load_state_dict(torch.load(work / "{}-{}-{}.pt".format(*job), weights_only=True))
    return model.eval()


def row(job: tuple[str, str, int], forward: str, n: int, delay: int, steps: int, score: tuple[float, float], work: Path) -> Row:
    known = json.loads((work / "{}-{}-{}.json".format(*job)).read_text())
    named = {"task": job[0], "model": job[1], "seed": job[2], "forward": forward, "N": n, "delay": delay, "T": steps}
    return named | {"bits": round(score[0], 4), "items": round(score[1], 4), **{k: round(v, 1) for k, v in known.items()}}


def episode_rows(job: tuple[str, str, int], work: Path, samples: int) -> list[Row]:
    model, rows = trained(job, work), []
    for delay in DELAYS:
        for n in PAIRS:
            batch = recall.episode(samples, n, delay, torch.Generator().manual_seed(n * 100 + delay))
            rows.append(row(job, "parallel", n, delay, len(batch.x), recall.evaluate(model, batch), work))
    return rows


def as_library(model: nn.Module) -> nn.Module:
    """The same weights under snnTorch's forward."""
    ours, other = model.spiking, recall.library(model.spiking.d_value)
    other.load_state_dict(model.state_dict())
    assert isinstance(other.spiking, snntorch.AssociativeLeaky) and isinstance(ours, recall.AssociativeLeaky)
    return other.eval()


def stream_rows(job: tuple[str, str, int], work: Path, items: int) -> list[Row]:
    model, rows = trained(job, work), []
    for episodes in EPISODES:
        batch = recall.stream(max(1, items // episodes), episodes, torch.Generator().manual_seed(episodes))
        for forward, which in (("ours", model), ("snntorch-1.0.0", as_library(model))):
            rows.append(row(job, forward, 4, 4, len(batch.x), recall.evaluate(which, batch), work))
    return rows


def deployed(model: nn.Module, batch: recall.Batch) -> tuple[str, tuple[float, float]]:
    """The exported cell in ONNX Runtime, step by step, on what the parallel form was scored on: how many answers differ, and the score."""
    from spikedeploy import convert
    from spikedeploy.exporters import onnx_cell
    from spikedeploy.runtime.onnx_runner import OnnxRunner

    cell = onnx_cell.export(convert(model, batch.x[:3, :2]))
    output = next(iter(OnnxRunner(cell, batch=batch.x.shape[1]).run(batch.x.numpy()).outputs.values()))
    logits = torch.from_numpy(np.asarray(output))[batch.asked]
    with torch.no_grad():
        differ = int(((logits > 0) != (model(batch.x)[batch.asked] > 0)).sum())
    return f"ONNX Runtime cell ({differ} answer bits differ)", recall.score(logits, batch)


def deployed_rows(job: tuple[str, str, int], work: Path, limits: dict[str, int]) -> list[Row]:
    """The best model of the episodes, and the first of the streams over the longest stream."""
    model, rows = trained(job, work), []
    for n in PAIRS[:5]:
        batch = recall.episode(limits["samples"], n, 12, torch.Generator().manual_seed(n * 100 + 12))
        name, score = deployed(model, batch)
        rows.append(row(job, name, n, 12, len(batch.x), score, work))
    job, episodes = ("stream", "ours", SEEDS[0]), EPISODES[-1]
    batch = recall.stream(max(1, limits["items"] // episodes), episodes, torch.Generator().manual_seed(episodes))
    name, score = deployed(trained(job, work), batch)
    return [*rows, row(job, name, 4, 4, len(batch.x), score, work)]


def best(rows: list[Row], model: str) -> int:
    """The seed with the highest bit accuracy over the trained range."""
    return max(SEEDS, key=lambda seed: average(rows, model, seed))


def average(rows: list[Row], model: str, seed: int, task: str = "episodes", **where: Any) -> float:
    """Mean bit accuracy over N = 2..6 and the trained delays, or over those of `where`."""
    return mean(
        r["bits"]
        for r in rows
        if (r["task"], r["model"], r["seed"], r["forward"]) == (task, model, seed, "parallel")
        and all(r[key] in values for key, values in {"N": PAIRS[:5], "delay": DELAYS[:3], **where}.items())
    )


def collect(work: Path, limits: dict[str, int]) -> list[Row]:
    rows: list[Row] = []
    for job in jobs():
        if job[0] == "stream":
            rows += stream_rows(job, work, limits["items"])
        else:
            rows += episode_rows(job, work, limits["samples"])
    return rows + deployed_rows(("episodes", "ours", best(rows, "ours")), work, limits)


def machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    return f"{cpu}, one thread per training, torch {torch.__version__}, snntorch {snntorch.__version__}, Python {platform.python_version()}"


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def page(rows: list[Row], limits: dict[str, int]) -> str:
    """The tables for people."""
    episodes, everyone = [r for r in rows if r["task"] == "episodes" and r["forward"] == "parallel"], list(recall.MODELS)

    def cell(model: str, n: int, delay: int) -> str:
        return f"{mean(r['bits'] for r in episodes if (r['model'], r['N'], r['delay']) == (model, n, delay)):.3f}"

    size = {r["model"]: r["parameters"] for r in episodes}
    took = {m: mean(r["seconds"] for r in episodes if r["model"] == m) for m in everyone}
    parts = [
        "# Associative recall\n\n`python benchmarks/recall.py`; " + machine() + ".\n",
        f"{recall.BITS}-bit keys and values, d = n = 16, {limits['updates']} updates of {limits['batch']} episodes for every model "
        "(N 2 to 6, delay 2 to 24), AdamW, one-cycle rate. Published beside: Gen2 .93 to .99 bit accuracy, Gen1 .64 to .65 (N 2 to 6). "
        "Chance is .5. Seconds are wall time with several trainings at once on a machine with other work: not a comparison of speed.\n",
        "## Mean bit accuracy over N = 2..6 and delays 2, 12, 24, per seed\n",
        table(
            ["model", "parameters", "training s", *(f"seed {s}" for s in SEEDS)],
            [[m, f"{size[m]:.0f}", f"{took[m]:.0f}", *(f"{average(rows, m, s):.3f}" for s in SEEDS)] for m in everyone],
        ),
        "`+retention` and `ours` start with writes lasting 50 steps, `snntorch` and `ours-no-retention` with the default (alpha near .5), "
        "which did not leave chance within this budget, but for one seed. Over at most 31 steps, and with slow decays, the library's "
        "parallel form is the same function as ours and learns as well; what parts the two is the length of the stream, below.\n",
        "## By N, delay 12 (mean of seeds; 8, 10, 16 were never trained)\n",
        table(["model", *(f"N={n}" for n in PAIRS)], [[m, *(cell(m, n, 12) for n in PAIRS)] for m in everyone]),
        "## By delay, N = 4 (60 was never trained)\n",
        table(["model", *(f"delay {d}" for d in DELAYS)], [[m, *(cell(m, 4, d) for d in DELAYS)] for m in everyone]),
        f"## Initial retention, {limits['retention_updates']} updates, one seed (mean over N = 2..6)\n",
        table(
            ["horizon", *(f"delay {d}" for d in DELAYS)],
            [[str(r), *(f"{average(rows, str(r), 0, 'retention', delay=(d,)):.3f}" for d in DELAYS)] for r in RETENTIONS],
        ),
        f"## A stream of episodes of 9 steps, no reset, trained at T = 216 ({limits['stream_updates']} updates): whole items right\n",
        table(
            ["forward", "seed", *(f"T={9 * e}" for e in EPISODES)],
            [
                [forward, str(s), *(f"{r['items']:.3f}" for r in rows if (r["task"], r["seed"], r["forward"]) == ("stream", s, forward))]
                for forward in ("ours", "snntorch-1.0.0")
                for s in SEEDS
            ],
        ),
        "## Deployed: the best model as an ONNX step cell\n",
        table(
            ["forward", *(f"N={n}" for n in PAIRS[:5])],
            [
                ["parallel", *(f"{r['bits']:.4f}" for r in _beside(rows))],
                ["cell", *(f"{r['bits']:.4f} ({r['forward'].split('(')[1]}" for r in rows if _is_cell(r, "episodes"))],
            ],
        ),
        *(
            f"The stream, seed {r['seed']}, {r['T']} steps: {r['forward']}, {r['items']:.3f} of whole items.\n"
            for r in rows
            if _is_cell(r, "stream")
        ),
    ]
    return "\n".join(parts)


def _is_cell(r: Row, task: str) -> bool:
    return r["task"] == task and "cell" in r["forward"]


def _beside(rows: list[Row]) -> list[Row]:
    seed = next(r["seed"] for r in rows if _is_cell(r, "episodes"))
    wanted = ("episodes", "ours", seed, "parallel", 12)
    return [r for r in rows if (r["task"], r["model"], r["seed"], r["forward"], r["delay"]) == wanted and r["N"] <= 6]


def figure(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4))
    for model in recall.MODELS:
        chosen = [r for r in rows if (r["task"], r["model"], r["forward"]) == ("episodes", model, "parallel")]
        left.plot(PAIRS, [mean(r["bits"] for r in chosen if (r["N"], r["delay"]) == (n, 12)) for n in PAIRS], "o-", label=model)
        middle.plot(DELAYS, [mean(r["bits"] for r in chosen if (r["N"], r["delay"]) == (4, d)) for d in DELAYS], "o-", label=model)
    for forward in ("ours", "snntorch-1.0.0"):
        chosen = [r for r in rows if (r["task"], r["forward"]) == ("stream", forward)]
        right.semilogx(
            [9 * e for e in EPISODES], [mean(r["items"] for r in chosen if r["T"] == 9 * e) for e in EPISODES], "o-", label=forward
        )
    left.set(xlabel="pairs N (trained: 2 to 6)", ylabel="bit accuracy", title="delay 12")
    middle.set(xlabel="delay (trained: 2 to 24)", title="N = 4")
    right.set(xlabel="steps of the stream (trained: 216)", ylabel="whole items right", title="one set of weights, two forwards")
    left.legend(fontsize=7, loc="upper right", bbox_to_anchor=(1.0, 0.88))
    right.legend()
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)


def write(rows: list[Row], limits: dict[str, int], results: Path) -> None:
    results.mkdir(parents=True, exist_ok=True)
    with (results / "recall.csv").open("w", newline="") as file:
        file.write(f"# python benchmarks/recall.py; {machine()}\n# budget: {limits}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    present(rows, limits, results)


def present(rows: list[Row], limits: dict[str, int], results: Path) -> None:
    (results / "recall.md").write_text(page(rows, limits))
    figure(rows, results / "recall.png")


def stored(path: Path) -> list[Row]:
    """The rows of a CSV file, numbers as numbers."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    kinds = {"task": str, "model": str, "forward": str, "bits": float, "items": float, "seconds": float}
    return [{key: kinds.get(key, int)(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description="The associative-recall benchmark.")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("recall-work"), help="where trained models are kept")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true", help="only write the page and the figure again, from the CSV file")
    options = parser.parse_args()
    limits = budget(options.quick)
    if options.page:
        present(stored(options.results / "recall.csv"), limits, options.results)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        list(pool.map(run, jobs(), [options.work] * len(jobs()), [options.quick] * len(jobs())))
    rows = collect(options.work, limits)
    write(rows, limits, options.results)
    print(page(rows, limits))


if __name__ == "__main__":
    main()
