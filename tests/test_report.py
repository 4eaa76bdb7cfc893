"""Counts against counting by hand, and the report as text, JSON and HTML."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from events_programs import random_input, random_program
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy import steps as S
from spikedeploy.cli import main
from spikedeploy.errors import BadInput
from spikedeploy.program import Output, Program
from spikedeploy.report import energy, measure
from spikedeploy.report.counts import Report
from spikedeploy.report.evidence import Evidence
from spikedeploy.report.html import html
from spikedeploy.report.pictures import png
from spikedeploy.report.text import text
from spikedeploy.runtime import reference


def small() -> Program:
    weight = np.array([[1.0, 0.0, -2.0], [0.5, 0.5, 0.0]])
    return Program(
        (3,),
        (
            S.Affine("fc", ("input",), weight=weight, bias=np.ones(2)),
            S.Integrator("lif.mem", ("fc",), decay=np.array(0.5)),
            S.Threshold("lif", ("lif.mem",), threshold=np.array(1.5)),
        ),
        (Output("out", "lif"),),
    )


def test_by_hand() -> None:
    x = np.array([[[1, 0, 0], [0, 0, 0]], [[0, 2, 1], [0, 0, 1]]], np.float32)
    report = measure(small(), x)
    fc, mem, lif = report.layers
    # step 0: input 0 reaches both outputs, 2 ACs; step 1 holds a 2, so all of it are MACs: input 1 reaches one output, input 2 one, twice
    assert (fc.acs, fc.macs, fc.dense) == (2, 3, 2 * 2 * 6)
    assert (fc.weights, fc.zero_weights, fc.weight_bytes) == (6, 2, 4 * 2 * 4)
    assert (mem.driven, mem.idle, mem.state_bytes) == (2 + 0 + 2 + 1, 3, 2 * 2 * 2 * 8)
    exact = reference.run(small(), x)
    assert (lif.spikes, lif.decisions) == (exact.spikes["lif"], 8)
    assert report.per_sample["acs"].tolist() == [2, 0] and report.per_step["macs"].tolist() == [0, 3]
    assert report.input_events == 4 and report.input_values == 12


def by_definition(step: S.Affine | S.Conv2d, x: np.ndarray) -> int:
    """Nonzero inputs times nonzero weights, by running the map on ones."""
    binary = type(step)(
        **{name: getattr(step, name) for name in step.__dataclass_fields__} | {"weight": (step.weight != 0) * 1.0, "bias": None}
    )
    rule = reference.STEP[type(step)]
    return int(sum(rule(binary, (now != 0) * 1.0, {}).sum() for now in x))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_operations_by_definition(seed: int) -> None:
    program = random_program(seed)
    x = random_input(program, seed, 5, 2)
    report = measure(program, x)
    run = reference.run(program, x, dtype=np.float32, record=program.wires)
    same = all(
        np.array_equal(run.wires[s.name] != 0, measure_wire(program, x, s.name) != 0)
        for s in program.steps
        if isinstance(s, S.Affine | S.Conv2d)
    )
    for step in program.steps:
        if isinstance(step, S.Affine | S.Conv2d) and same:
            count = next(layer for layer in report.layers if layer.name == step.name)
            assert count.acs + count.macs == by_definition(step, measure_wire(program, x, step.inputs[0]))
            assert count.acs + count.macs <= count.dense
    assert report.total.acs == sum(report.per_sample["acs"]) == sum(report.per_step["acs"])
    assert report.total.macs == sum(report.per_sample["macs"]) == sum(report.per_step["macs"])


def measure_wire(program: Program, x: np.ndarray, wire: str) -> np.ndarray:
    from spikedeploy.runtime import EventEngine

    return EventEngine(program, x.shape[1]).run(x, record=[wire]).wires[wire]


def test_a_bias_drives_nobody_whatever_lies_between() -> None:
    """An event in one corner of an image: what it reaches through a convolution, pooling, a skip and a reshape is driven, no one else."""
    steps = (
        S.Conv2d("conv", ("input",), weight=np.ones((1, 1, 2, 2)), bias=np.ones(1)),
        S.Scale("half", ("conv",), scale=np.array(0.5), offset=np.array(1.0)),
        S.SumPool2d("pool", ("half",), kernel=(2, 2), stride=(2, 2)),
        S.Slice("last", ("input",), 3, 4),
        S.Reshape("skip", ("last",), shape=(1, 2, 2)),
        S.Add("both", ("pool", "skip")),
        S.Reshape("flat", ("both",), shape=(4,)),
        S.Integrator("mem", ("flat",), decay=np.array(0.5)),
        S.Threshold("spk", ("mem",), threshold=np.array(1.0)),
    )
    padded = replace(steps[0], padding=(1, 1), stride=(1, 1))
    program = Program((1, 4, 4), (padded, *steps[1:]), (Output("spk", "spk"),))
    x = np.zeros((3, 1, 1, 4, 4), np.float32)
    x[1, 0, 0, 0, 0] = 1  # the first pooled pixel, of which the tap at padding 1 makes one
    x[2, 0, 0, 3, 3] = 1  # the last pooled pixel, and the last of the skip
    mem = next(layer for layer in measure(program, x).layers if layer.name == "mem")
    assert (mem.driven, mem.idle) == (0 + 1 + 1, 4 + 3 + 3)
    assert measure(program, x).series["mem"].per_step["driven"].tolist() == [0, 1, 1]


def test_every_count_by_step_and_by_sample() -> None:
    program = random_program(8)
    x = random_input(program, 8, 2300, 3)
    document = json.loads(json.dumps(measure(program, x).as_dict()))
    for layer in (*document["layers"], document["total"]):
        for name in ("spikes", "acs", "macs", "dense", "driven", "idle", "elements", "state_bytes", "weight_bytes"):
            steps, samples = layer["per_step"].get(name, [0]), layer["per_sample"].get(name, [0])
            assert sum(steps) == sum(samples) == layer[name] and len(steps) in (1, 1000) and len(samples) in (1, 3)
    piece, first = measure(program, x[:, 1:2]), document["per_step"]["first_step"]
    assert [layer["per_sample"].get("driven", [0] * 3)[1] for layer in document["layers"]] == [layer.driven for layer in piece.layers]
    early = measure(program, x[: first[1]])
    assert [layer["per_step"].get("driven", [0])[0] for layer in document["layers"]] == [layer.driven for layer in early.layers]


def test_a_state_space_layer_reads_every_weight_once() -> None:
    parts = {name: np.full((3, 4), 0.5) for name in ("a_re", "a_im", "c_re", "c_im")}
    program = Program((3,), (S.DiagonalSSM("ssm", ("input",), d=np.ones(3), **parts),), (Output("ssm", "ssm"),))
    layer = measure(program, np.ones((2, 1, 3))).layers[0]
    assert (layer.macs, layer.weight_bytes, layer.state_bytes) == (2 * (6 * 12 + 3), 2 * 4 * (4 * 12 + 3), 2 * 2 * 8 * 12)


def test_text_shows_every_layer_that_costs_something() -> None:
    steps = (
        S.Embedding("e", ("input",), table=np.ones((3, 2))),
        S.LayerNorm("norm", ("e",), None, None),
        S.Activation("act", ("norm",), function="tanh"),
    )
    report = measure(Program((), steps, (Output("act", "act"),), "index"), np.ones((2, 1)))
    lines = {line.split()[0]: line.split() for line in text(report, [], None).splitlines() if line}
    assert lines["e"][-1] == lines["total"][-1] == "16" and lines["norm"][-4:-2] == ["16", "4"] and lines["act"][-3] == "4"


def test_a_program_that_costs_nothing() -> None:
    program = Program((4,), (S.Reshape("r", ("input",), (2, 2)), S.Slice("s", ("r",), 0, 1)), (Output("s", "s"),))
    report = measure(program, np.ones((3, 2, 4)))
    assert report.layers == () and report.total.acs == 0 and energy(report).total == 0
    assert "0 effective operations" in text(report, [energy(report)], None) and rendered(report)


@pytest.mark.parametrize("wild", [1e300, np.nan])
def test_numbers_beyond_float32_are_refused(wild: float) -> None:
    with pytest.raises(BadInput, match=r"beyond float32|NaN"):
        measure(small(), np.full((2, 1, 3), wild))


def test_counts_do_not_depend_on_the_engine_or_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    program = random_program(12)
    x = random_input(program, 12, 30, 2)
    first = measure(program, x, native=False).as_dict()
    monkeypatch.setattr("spikedeploy.report.measuring.CHUNK_BYTES", 1)
    assert measure(program, x).as_dict() == first


def gen2() -> Program:
    rng = np.random.default_rng(0)
    names = ("v", "k", "raw")
    steps = [S.Affine(n, ("input",), weight=rng.normal(size=(size, 4)), bias=None) for n, size in zip(names, (3, 2, 2), strict=True)]
    return Program(
        (4,),
        (
            *steps,
            S.Activation("alpha", ("raw",), function="sigmoid"),
            S.TopK("kept", ("k",), k=1),
            S.MatrixMemory("S", ("v", "kept", "alpha")),
            S.Threshold("spk", ("S",), threshold=np.array(0.2)),
        ),
        (Output("out", "spk"),),
    )


def test_a_memory_counts_decay_and_writes_as_macs() -> None:
    report = measure(gen2(), np.random.default_rng(1).normal(size=(4, 1, 4)))
    memory = next(layer for layer in report.layers if layer.name == "S")
    states = measure_wire(gen2(), np.random.default_rng(1).normal(size=(4, 1, 4)), "S")
    assert memory.macs == 4 * 3 * 1 + np.count_nonzero(states[:-1]) and memory.dense == 4 * 2 * 6 and memory.acs == 0
    refused = energy(report)
    assert refused.total is None and refused.refused == ("functions",)


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href") and not (v or "").startswith("data:")]
        self.outside += [tag] if tag in ("script", "link", "iframe") else []


def rendered(report: Report, evidence: Evidence | None = None, title: str = "model.pt") -> str:
    return html(report, [energy(report, name) for name in ("45nm", "loihi")], evidence, title)


def test_html_stands_alone_and_carries_the_numbers() -> None:
    x = (np.random.default_rng(0).random((50, 2, 3)) < 0.4).astype(np.float32)
    report = measure(small(), x)
    page = rendered(report, title="<script>alert(1)</script>")
    checker = Checker()
    checker.feed(page)
    assert not checker.outside and "http" not in page.replace("http-equiv", "")
    for value in (report.total.acs, report.total.dense, report.layers[2].spikes):
        assert f"{value:,}" in page and f"{value:,}" in text(report, [energy(report)], None)
    assert report.as_dict()["total"]["acs"] == report.total.acs


def test_png_is_a_png() -> None:
    from io import BytesIO

    from matplotlib.image import imread

    image = np.random.default_rng(0).random((5, 13)) < 0.5
    assert np.array_equal(imread(BytesIO(png(image))) < 0.5, image)


def test_a_hundred_thousand_steps_stay_small() -> None:
    """Beyond the input itself: far under 1 GB of memory, and far under 10 MB of HTML."""
    import tracemalloc

    x = np.zeros((100_000, 1, 3), np.float32)
    x[::7, 0, 0] = 1
    tracemalloc.start()
    report = measure(small(), x)
    page, document = rendered(report), json.dumps(report.as_dict())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.layers[0].acs == 2 * len(x[::7])
    assert peak < 100e6 and len(page) < 1_000_000 and len(document) < 1_000_000


def run_cli(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    import zoo

    from spikedeploy.checkpoint import save

    model, x = zoo.plain()
    save(model, tmp_path / "model.pt", x)
    np.save(tmp_path / "x.npy", x.numpy())
    base = ["report", str(tmp_path / "model.pt"), "--input", str(tmp_path / "x.npy")]
    assert run_cli([*base, "--html", str(tmp_path / "report.html"), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["equivalence"]["certificate"]["verdict"] == "equivalent"
    assert {found["table"] for found in document["energy"]} == {"45nm", "45nm-sram", "45nm-dram", "loihi"}
    page = (tmp_path / "report.html").read_text()
    assert "Equivalence: equivalent" in page and f"{document['total']['dense']:,}" in page
    assert run_cli([*base, "--no-verify", "--prices", "45nm"]) == 0
    assert "not verified in this report" in capsys.readouterr().out
    assert run_cli([*base, "--prices", "nothing"]) == 2
    assert "one of 45nm, 45nm-sram, 45nm-dram, loihi is needed" in capsys.readouterr().err
    assert torch is not None


def test_what_can_be_known_to_fail_fails_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in ((["--html", str(tmp_path / "no" / "a.html")], "there is no directory"), (["--prices", "x"], "energy table 'x'")):
        assert run_cli(["report", "missing.pt", "--input", "missing.npy", *more]) == 2
        assert said in capsys.readouterr().err


def test_json_is_json_where_membranes_overflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import zoo

    from spikedeploy.checkpoint import save

    model, x = zoo.plain()
    save(model, tmp_path / "model.pt", x)
    np.save(tmp_path / "x.npy", np.full(x.shape, 3e38, np.float32))
    with np.errstate(all="ignore"):
        assert run_cli(["report", str(tmp_path / "model.pt"), "--input", str(tmp_path / "x.npy"), "--json"]) == 0

    def never(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(capsys.readouterr().out, parse_constant=never)["steps"] == len(x)
