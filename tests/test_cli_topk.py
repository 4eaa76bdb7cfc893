"""Top-k where a model is deployed: the same sparse program in every command, refused in the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import zoo

import spikedeploy
from spikedeploy import cli
from spikedeploy.errors import BadInput
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky
from spikedeploy.program import Program
from spikedeploy.runtime import reference
from spikedeploy.topk import with_topk
from spikedeploy.verify import verify

torch.set_num_threads(1)

X = 2 * torch.randn(11, 6, 5, generator=torch.Generator().manual_seed(4))
SETTING = ("--topk-k", "0.5", "--topk-v", "2")


def memory(kind: Any, **options: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(kind(5, 3, 4, threshold=0.2, **options), torch.nn.Linear(9, 4)).eval()


def sparse(name: str) -> Program:
    return with_topk(spikedeploy.convert(memory(KINDS[name]), X), 0.5, 2)


KINDS = {"gen2": AssociativeLeaky, "gen3": DeltaRuleLeaky}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("topk")
    for name, kind in KINDS.items():
        spikedeploy.save(memory(kind), folder / f"{name}.pt", X)
        assert cli.outcome(["export", str(folder / f"{name}.pt"), "--target", "onnx", *SETTING]) == 0
    spikedeploy.save(memory(AssociativeLeaky, topk_k=2), folder / "own.pt", X)
    plain, x = zoo.MODELS["plain"]()
    spikedeploy.save(plain, folder / "plain.pt", x)
    assert cli.outcome(["export", str(folder / "plain.pt"), "--target", "nir"]) == 0
    np.save(folder / "x.npy", X.numpy())
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.outcome([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", KINDS)
def test_the_cell_holds_the_sparse_program(name: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [node.op_type for node in onnx.load(files / f"{name}.onnx").graph.node].count("TopK") == 2
    for given in ((files / f"{name}.onnx",), (files / f"{name}.pt", *SETTING)):
        code, out, _ = call(capsys, "inspect", *given, "--json")
        assert code == 0 and json.loads(out)["digest"] == sparse(name).digest


@pytest.mark.parametrize("name", KINDS)
def test_every_engine_runs_the_sparse_program(name: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = reference.run(sparse(name), X.numpy(), dtype=np.float32, record=["0.spk"])
    full = reference.run(spikedeploy.convert(memory(KINDS[name]), X), X.numpy(), dtype=np.float32)
    assert 0 < expected.spikes["0.spk"] != full.spikes["0.spk"]
    for engine, given in {
        "reference": ("gen.pt", *SETTING),
        "events": ("gen.pt", *SETTING),
        "onnxruntime": ("gen.onnx",),
    }.items():
        file = files / given[0].replace("gen", name)
        arguments = ("--input", files / "x.npy", "--engine", engine, "-o", tmp_path / "s.npz")
        assert call(capsys, "run", file, *given[1:], *arguments)[0] == 0
        with np.load(tmp_path / "s.npz") as found:
            assert np.array_equal(found["spikes.0.spk"], expected.wires["0.spk"])


@pytest.mark.parametrize("name", KINDS)
def test_verify_holds_the_cell_to_the_sparse_program_and_says_what_it_costs(
    name: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = (files / f"{name}.pt", files / f"{name}.onnx", "--input", files / "x.npy", "--json")
    code, out, _ = call(capsys, "verify", *both, *SETTING)
    found = json.loads(out)
    assert (code, found["verdict"], found["program_digest"]) == (0, "equivalent", sparse(name).digest)
    changed = [finding for finding in found["findings"] if "by the chosen options" in finding["text"] and finding["level"] == "warn"]
    full = reference.run(spikedeploy.convert(memory(KINDS[name]), X), X.numpy(), record=["0.spk"]).wires["0.spk"]
    here = reference.run(sparse(name), X.numpy(), record=["0.spk"]).wires["0.spk"]
    assert changed[0]["data"]["spikes"] == pytest.approx((full != here).mean()) and changed[0]["data"]["spikes"] > 0
    parties = {check["party"]: check["mismatches"] for check in found["layers"]}
    assert parties == {"parallel (torch, float32)": 0, "reference (float32)": 0, f"{name}.onnx (ONNX Runtime)": 0}
    code, out, _ = call(capsys, "verify", *both)
    assert code == 1 and json.loads(out)["verdict"] == "different"


def test_report_says_what_its_verdict_is_about(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "report", files / "gen2.pt", "--input", files / "x.npy", *SETTING)
    verdict = out[out.index("Equivalence: equivalent") : out.index("Energy of the whole input")]
    assert code == 0 and "warn: layer '0.spk': by the chosen options" in verdict
    assert "by the chosen options" not in call(capsys, "report", files / "gen2.pt", "--input", files / "x.npy")[1]


def test_verify_finds_the_semantics_beside_the_topk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = zoo.MODELS["gen2"]()
    spikedeploy.save(model, tmp_path / "m.pt", x)
    keep = ("--topk-k", "0.5")
    assert call(capsys, "export", tmp_path / "m.pt", "--target", "onnx", "--semantics", "recurrence", *keep)[0] == 0
    code, out, _ = call(capsys, "verify", tmp_path / "m.pt", tmp_path / "m.onnx", *keep)
    assert code == 0 and "deployed as the recurrence" in out


def test_verify_from_python_takes_programs(files: Path) -> None:
    program = spikedeploy.convert(memory(AssociativeLeaky), X)
    assert verify(program, files / "gen2.onnx", X.numpy(), options={"topk_k": 0.5, "topk_v": 2}).passed
    assert verify(memory(AssociativeLeaky), files / "gen2.onnx", X.numpy(), options={"topk_k": 2, "topk_v": 2, "dt": None}).passed
    with pytest.raises(BadInput, match=r"option semantics: it has no meaning for a Program and .*gen2\.onnx"):
        verify(program, files / "gen2.onnx", X.numpy(), options={"semantics": "recurrence"})


def test_narrower_than_trained_is_allowed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in ("1", "2", "1.0"):
        assert call(capsys, "verify", files / "own.pt", "--topk-k", setting)[0] == 0


def test_what_is_kept_is_noted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "inspect", files / "gen2.pt", *SETTING)[1]
    assert "note: top-k: '0.S' keeps 2 of 3 values and 2 of 4 keys" in out
    assert "note: top-k: '0.S' keeps 2 of 3 values and 2 of 4 keys" in call(capsys, "verify", files / "gen2.pt", *SETTING)[1]


@pytest.mark.parametrize("command", ["run", "verify", "export", "inspect", "report"])
@pytest.mark.parametrize(
    ("model", "option", "code", "text"),
    [
        ("plain.pt", ("--topk-k", "1"), 1, "no matrix memory in it (Threshold)"),
        ("plain.nir", ("--topk-v", "1"), 1, "no matrix memory in it (Threshold)"),
        ("own.pt", ("--topk-k", "0.75"), 2, "--topk-k of '0.S': 0.75 is 3 of 4; the layer was trained to keep 2."),
        ("gen2.pt", ("--topk-v", "4"), 2, "--topk-v of '0.S': 4; a count from 1 to 3"),
        ("gen2.pt", ("--topk-k", "0"), 2, "--topk-k: '0'; fractions in (0, 1] and counts"),
        ("gen2.pt", ("--topk-k", "1,2"), 2, "--topk-k: '1,2'"),
        ("gen2.onnx", ("--topk-k", "1"), 2, ""),
    ],
)
def test_what_cannot_be_made_sparse_is_refused(
    command: str,
    model: str,
    option: tuple[str, str],
    code: int,
    text: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "export" and not model.endswith(".pt"):
        code, text = 2, "one of .pt, .pth is needed"
    more = {
        "run": ("--input", files / "x.npy", "-o", tmp_path / "o.npz"),
        "export": ("--target", "onnx", "-o", tmp_path / "o.onnx"),
        "report": ("--input", files / "x.npy", "--html", tmp_path / "o.html"),
    }.get(command, ())
    found, out, err = call(capsys, command, files / model, *option, *more)
    assert (found, out) == (code, "") and err.startswith("error: ") and text in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_cell_is_sparse_or_not(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("run", files / "gen2.onnx", "--input", files / "x.npy"), ("inspect", files / "gen2.onnx")):
        code, _, err = call(capsys, *command, "--topk-k", "1")
        assert code == 2 and "option topk-k: it has no meaning for" in err


def test_nir_refuses_the_memory_by_name(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "export", files / "gen2.pt", "--target", "nir", *SETTING, "-o", tmp_path / "m.nir")
    assert code == 1 and "'0.S' (AssociativeLeaky): NIR has no node" in err and not list(tmp_path.iterdir())
