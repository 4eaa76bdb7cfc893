"""The command line: every command on real files, every kind of failure as one message and one exit code, nothing written by halves."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import zoo
from torch import nn

import spikedeploy
from spikedeploy import cli
from spikedeploy.cli.endings import run as run_group
from spikedeploy.errors import BadInput, ModelRefused, NotEquivalent

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, artifacts and inputs that the tests read."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("plain", "gen2", "truncated"):
        model, x = zoo.MODELS[name]()
        spikedeploy.save(model, folder / f"{name}.pt", x)
        np.save(folder / f"{name}.npy", x.numpy())
    assert cli.outcome(["export", str(folder / "plain.pt"), "--target", "nir"]) == 0
    assert cli.outcome(["export", str(folder / "gen2.pt"), "--target", "onnx", "--sequence"]) == 0
    return folder


class Call:
    """The outcome of one command."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        capsys.readouterr()
        self.code = cli.outcome([str(argument) for argument in arguments])
        self.out, self.err = capsys.readouterr()


# --- what works ------------------------------------------------------------------------------------------------


def test_export_says_what_it_wrote_and_verified(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(capsys, "export", files / "plain.pt", "--target", "nir", "-o", tmp_path / "m.nir", "--profile", "norse")
    assert (call.code, call.err) == (0, "")
    wrote, verdict = call.out.splitlines()[:2]
    assert wrote.startswith(f"wrote {tmp_path / 'm.nir'}: ") and "sha256" in wrote
    assert verdict.startswith("equivalent: 0 spike mismatches in ")
    assert [path.name for path in tmp_path.iterdir()] == ["m.nir"]


def test_the_default_name_is_the_models(files: Path) -> None:
    assert (files / "plain.nir").exists() and (files / "gen2.onnx").exists() and (files / "gen2.sequence.onnx").exists()


def test_exports_are_the_same_bytes_every_time(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(Call(capsys, "export", files / "plain.pt", "--target", "nir", "-o", tmp_path / "a.nir", "--json").out)
    assert (tmp_path / "a.nir").read_bytes() == (files / "plain.nir").read_bytes()
    assert data["certificate"]["verdict"] == "equivalent" and data["files"][0]["bytes"] == (tmp_path / "a.nir").stat().st_size


@pytest.mark.parametrize(("model", "artifact"), [("plain.pt", "plain.nir"), ("gen2.pt", "gen2.onnx")])
def test_verify_passes_on_what_was_exported(model: str, artifact: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = files / model.replace(".pt", ".npy")
    call = Call(capsys, "verify", files / model, files / artifact, "--input", x)
    assert (call.code, call.err) == (0, "")
    assert call.out.splitlines()[-1].startswith("equivalent: 0 spike mismatches")
    data = json.loads(Call(capsys, "verify", files / model, files / artifact, "--input", x, "--json").out)
    assert {check["party"] for check in data["layers"]} >= {"parallel (torch, float32)", "reference (float32)"}
    assert data["artifact"] == artifact and data["input_source"] == str(x) and data["seed"] is None


def test_verify_fails_on_another_models_artifact(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(99)
    spikedeploy.save(zoo.TwoLayers((5, 7, 3)).eval(), tmp_path / "other.pt", torch.zeros(3, 1, 5))
    call = Call(capsys, "verify", tmp_path / "other.pt", files / "plain.nir")
    assert call.code == 1
    assert call.out.splitlines()[-1].startswith("different: ")


def test_verify_finds_out_which_semantics_was_exported(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--target", "onnx", "-o", tmp_path / "r.onnx", "--semantics", "recurrence")
    assert Call(capsys, "export", files / "gen2.pt", *options).code == 0
    call = Call(capsys, "verify", files / "gen2.pt", tmp_path / "r.onnx")
    assert call.code == 0 and "deployed as the recurrence" in call.out


def test_verify_of_a_model_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(Call(capsys, "verify", files / "plain.pt", "--steps", 20, "--batch", 3, "--seed", 7, "--json").out)
    assert (data["steps"], data["batch"], data["seed"], data["artifact"]) == (20, 3, 7, None)


def test_inspect_shows_states_decays_thresholds_and_digest(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = zoo.MODELS["plain"]()
    digest = spikedeploy.convert(model, x).digest
    for name in ("plain.pt", "plain.nir"):
        data = json.loads(Call(capsys, "inspect", files / name, "--json").out)
        by_name = {layer["name"]: layer for layer in data["layers"]}
        assert by_name["lif1.mem"]["decay"] == [pytest.approx(np.exp(-0.1), abs=1e-6)]
        assert by_name["lif1.mem"]["states"] == {"u": [7]} and by_name["lif1"]["threshold"] == [1.0]
        assert data["parameters"] == 5 * 7 + 7 + 7 * 3 + 3 + 2 * 3  # and decay, threshold, amplitude
    assert digest in Call(capsys, "inspect", files / "plain.pt").out
    cell = Call(capsys, "inspect", files / "gen2.onnx")
    assert cell.code == 0 and "S(3, 4), log_p(4)" in cell.out and "semantics" in cell.out


@pytest.mark.parametrize(("file", "engine"), [("plain.nir", "reference"), ("plain.pt", "reference"), ("plain.nir", "events")])
def test_run_gives_the_references_spikes(file: str, engine: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(capsys, "run", files / file, "--input", files / "plain.npy", "-o", tmp_path / "s.npz", "--engine", engine)
    assert (call.code, call.err) == (0, "")
    model, x = zoo.MODELS["plain"]()
    with np.load(tmp_path / "s.npz") as found:
        assert np.array_equal(found["spikes.lif2"], model(x)[0].detach().numpy())
        assert np.array_equal(found["output.output_0"], found["spikes.lif2"])
    assert "lif1" in call.out and "fired" in call.out


def test_run_of_an_onnx_cell_and_of_its_sequence(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gen2.onnx", "gen2.sequence.onnx"):
        call = Call(capsys, "run", files / name, "--input", files / "gen2.npy", "-o", tmp_path / f"{name}.npz", "--json")
        assert call.code == 0 and json.loads(call.out)["engine"] == "ONNX Runtime"
    with np.load(tmp_path / "gen2.onnx.npz") as cell, np.load(tmp_path / "gen2.sequence.onnx.npz") as whole:
        assert np.array_equal(cell["output.output_0"], whole["output.output_0"])


def test_doctor_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(Call(capsys, "doctor", "--json").out)
    assert data["versions"]["torch"] == torch.__version__
    assert data["native core"]["available"] == (data["native core"].get("name", "") != "")
    assert "numpy" in Call(capsys, "doctor").out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(capsys, command, "--help")
    assert call.code == 0 and f"Example: spikedeploy {command}" in " ".join(call.out.split()) and "--json" in call.out


def test_help_starts_fast_and_without_torch() -> None:
    code = (
        "import sys; from spikedeploy.cli import outcome; outcome(['--help']); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < 0.2  # seconds of the processor: the wall clock of a busy machine says something else


def test_files_without_an_example_tell_their_width_by_their_first_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(zoo.__file__).parent))
    Path("made_here.py").write_text("import zoo\ndef make():\n    return zoo.MODELS['plain']()[0]\n")
    torch.save(zoo.MODELS["plain"]()[0].state_dict(), "state.pt")
    torch.save(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "whole.pt")
    assert Call(capsys, "export", "state.pt", "--target", "nir", "--model", "made_here:make").code == 0
    assert Call(capsys, "verify", "state.pt", "state.nir", "--model", "made_here:make").code == 0
    assert Call(capsys, "export", "whole.pt", "--target", "onnx").code == 0
    torch.save(nn.Sequential(nn.Conv2d(2, 3, 3)), "image.pt")
    check_refused(Call(capsys, "inspect", "image.pt"), 2, "Give one with --input")


# --- what cannot be done ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["verify", "inspect", "run", "export"])
@pytest.mark.parametrize("suffix", [".pt", ".nir", ".onnx"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 20])
def test_random_bytes_are_refused(
    command: str, suffix: str, content: bytes, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(content)
    more = {
        "verify": (files / "plain.pt", bad) if suffix != ".pt" else (bad,),
        "inspect": (bad,),
        "run": (bad, "--input", files / "plain.npy", "-o", tmp_path / "o.npz"),
        "export": (bad, "--target", "nir", "-o", tmp_path / "o.nir"),
    }[command]
    check_refused(Call(capsys, command, *more), 2)
    assert [path.name for path in tmp_path.iterdir()] == [bad.name]


def check_refused(call: Call, code: int, text: str = "") -> None:
    """One message on stderr, no traceback, nothing on stdout."""
    assert call.code == code, call.err
    assert call.out == "" and "Traceback" not in call.err
    assert call.err.startswith(("error: ", "Usage: ")) and text in call.err, call.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("verify", "missing.pt"), "missing.pt: there is no such file; an existing file is needed."),
        (("verify", "plain.pt", "missing.nir"), "missing.nir: there is no such file"),
        (("inspect", "."), "a file name ending in ''; one of .pt, .pth, .nir, .onnx is needed."),
        (("inspect", "plain.npy"), "a file name ending in '.npy'"),
        (("inspect", "folder.pt"), "folder.pt: it is a directory"),
        (("verify", "plain.pt", "plain.pt"), "one of .nir, .onnx is needed"),
        (("verify", "plain.pt", "plain.nir", "--steps", "0"), "--steps: it is 0; at least 1 is needed."),
        (("verify", "plain.pt", "plain.nir", "--input", "gen.npy"), "gen.npy: an array of shape (4, 2, 9); (T, B, 5) is needed"),
        (("verify", "plain.pt", "plain.nir", "--input", "none.npy"), "none.npy: an array of shape (0, 2, 5)"),
        (("verify", "plain.pt", "plain.nir", "--input", "nan.npy"), "nan.npy: NaN or infinity; finite numbers are needed."),
        (("verify", "plain.pt", "plain.nir", "--dt", "-1"), "option dt"),
        (("verify", "plain.pt", "--dt", "0.001"), "option dt: it has no meaning for plain.pt; an option for such a file is needed. Leave"),
        (("verify", "gen2.pt", "gen2.onnx", "--dt", "0.001"), "option dt: it has no meaning for gen2.pt and gen2.onnx"),
        (("verify", "plain.nir", "--semantics", "recurrence"), "option semantics: it has no meaning for plain.nir"),
        (("verify", "plain.nir", "plain.nir", "--model", "a:b"), "option model: it has no meaning for plain.nir and plain.nir"),
        (("verify", "plain.pt", "--input", "plain.npy", "--steps", "3"), "option --steps: it is for random input; --input gives the data"),
        (("run", "plain.nir", "--input", "plain.npy", "--truncation", "drop"), "option truncation: it has no meaning for plain.nir"),
        (("inspect", "plain.pt", "--dt", "0.001"), "option dt: it has no meaning for plain.pt"),
        (("report", "plain.pt", "--input", "plain.npy", "--discretisation", "exact"), "option discretisation: it has no meaning for"),
        (("report", "plain.nir", "--input", "plain.npy", "--truncation", "drop"), "option truncation: it has no meaning for plain.nir"),
        (("inspect", "plain.nir", "--input", "plain.npy"), "option --input: plain.nir knows its shapes"),
        (("inspect", "plain.pt", "--input", "plain.npy"), "option --input: plain.pt knows its shapes"),
        (("inspect", "plain.nir", "--model", "a:b"), "option model: it has no meaning for plain.nir"),
        (("inspect", "plain.pt", "--semantics", "recurrence"), "option semantics: it changes nothing: the model has no Gen2 layer"),
        (("verify", "plain.pt", "--semantics", "snntorch-1.0.0"), "option semantics: it changes nothing"),
        (("run", "gen2.pt", "--input", "gen2.npy", "--truncation", "exact"), "the model has no kernel_truncation_steps"),
        (("export", "gen2.pt", "--target", "onnx", "-o", "x.onnx", "--truncation", "drop"), "option truncation: it changes nothing"),
        (("verify", "gen2.pt", "gen2.sequence.onnx"), "gen2.sequence.onnx: it is a SequenceRunner; a program, or"),
        (("run", "plain.pt", "--input", "huge.npy"), "huge.npy: numbers beyond float32; finite numbers are needed."),
        (("verify", "plain.pt", "--input", "huge.npy"), "huge.npy: numbers beyond float32"),
        (("run", "plain.pt", "--input", "huge.npy", "--engine", "events"), "huge.npy: numbers beyond float32"),
        (("run", "gen2.onnx", "--input", "hugegen.npy"), "hugegen.npy: numbers beyond float32"),
        (("run", "gen2.sequence.onnx", "--input", "hugegen.npy"), "hugegen.npy: numbers beyond float32"),
        (("run", "gen2.onnx", "--input", "gen2.npy", "--dt", "0.001"), "option dt: it has no meaning for gen2.onnx"),
        (("run", "plain.nir", "--input", "gen.npy"), "an array of shape (4, 2, 9)"),
        (("run", "plain.nir", "--input", "plain.npy", "-o", "x.txt"), "its name does not end in .npz"),
        (("run", "plain.nir", "--input", "plain.npy", "-o", "nowhere/x.npz"), "there is no directory nowhere"),
        (("run", "gen2.onnx", "--input", "gen2.npy", "--engine", "reference"), "it is an ONNX cell"),
        (("run", "plain.nir", "--input", "plain.npy", "--engine", "onnxruntime"), "it is not an ONNX cell"),
        (("export", "plain.pt", "--target", "nir", "-o", "folder.nir"), "output folder.nir: it is a directory"),
        (("export", "plain.pt", "--target", "nir", "-o", "nowhere/m.nir"), "there is no directory nowhere"),
        (("export", "plain.pt", "--target", "nir", "-o", "m.onnx"), "its name does not end in .nir"),
        (("export", "plain.pt", "--target", "nir", "--opset", "17"), "option --opset: it has no meaning for --target nir"),
        (("export", "plain.pt", "--target", "onnx", "--profile", "norse"), "option --profile: it has no meaning for --target onnx"),
        (("export", "plain.pt", "--target", "onnx", "--opset", "3"), "opset: 3"),
        (("export", "plain.pt", "--target", "nir", "--profile", "nobody"), "option profile: 'nobody' is unknown"),
        (("export", "plain.pt", "--target", "hoc"), "Invalid value for '--target'"),
        (("export", "state.pt", "--target", "nir"), "--model package.module:factory"),
        (("export", "state.pt", "--target", "nir", "--model", "nothing.here:make"), "--model nothing.here:make: it failed"),
        (("frobnicate",), "No such command 'frobnicate'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(
    arguments: tuple[str, ...], text: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    for name in ("folder.pt", "folder.nir"):
        Path(name).mkdir(exist_ok=True)
    np.save("gen.npy", np.zeros((4, 2, 9), np.float32))
    np.save("none.npy", np.zeros((0, 2, 5), np.float32))
    np.save("nan.npy", np.full((4, 2, 5), np.nan, np.float32))
    np.save("huge.npy", np.full((4, 2, 5), -1e39))
    np.save("hugegen.npy", np.load("gen2.npy").astype(float) * 1e300)
    torch.save(nn.Linear(2, 2).state_dict(), "state.pt")
    before = sorted(path.name for path in files.iterdir())
    check_refused(Call(capsys, *arguments), 2, text)
    assert sorted(path.name for path in files.iterdir()) == before


def test_a_model_that_the_target_cannot_hold_is_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(capsys, "export", files / "gen2.pt", "--target", "nir", "-o", tmp_path / "g.nir")
    check_refused(call, 1, "mem1")
    assert "--target onnx" in call.err and not list(tmp_path.iterdir())


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = zoo.MODELS["plain"]()
    with torch.no_grad():
        model.get_parameter("fc2.weight")[1, 4] = torch.nan
    torch.save(nn.Sequential(model.fc2).state_dict(), tmp_path / "unused.pt")
    try:
        spikedeploy.save(model, tmp_path / "m.pt", x)
    except ModelRefused as error:
        assert "fc2" in str(error) and "nan" in str(error).lower()
        return
    check_refused(Call(capsys, "export", tmp_path / "m.pt", "--target", "nir"), 1, "fc2")
    assert not (tmp_path / "m.nir").exists()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, "zip.pt")
    for name in ("plain.pt", "zip.pt"):
        call = Call(capsys, "export", name, "--target", "nir")
        assert call.code in (1, 2) and "Traceback" not in call.err and "weights_only=False" not in call.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.pt", "zip.pt"]


def test_a_directory_that_may_not_be_written(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    check_refused(Call(capsys, "export", files / "plain.pt", "--target", "nir", "-o", tmp_path / "m.nir"), 2, "may not be written")


def test_an_old_artifact_survives_a_refused_export(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.nir").write_bytes(b"old")
    check_refused(Call(capsys, "export", files / "gen2.pt", "--target", "nir", "-o", tmp_path / "g.nir"), 1)
    assert (tmp_path / "g.nir").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# --- how a command ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ModelRefused("layer: bad."), 1, "error: layer: bad.\n"),
        (NotEquivalent("they differ."), 1, "error: they differ.\n"),
        (BadInput("file: bad."), 2, "error: file: bad.\n"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "error: x: No such file or directory.\n"),
        (MemoryError(), 2, "error: memory: "),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
        (click.UsageError("no"), 2, "error: no\n"),
    ],
)
def test_endings(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(failing(error), ["fail"]) == code
    assert text in capsys.readouterr().err


def failing(error: BaseException) -> click.Group:
    group = click.Group()

    @group.command("fail")
    def fail() -> None:
        raise error

    return group


def test_a_bug_of_ours_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(failing(ZeroDivisionError("oops")), ["fail"]) == 101
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "oops" in shown and shown.endswith("please report it with the lines above.\n")


def test_interrupting_a_real_process_leaves_nothing(files: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "x.npy"
    os.mkfifo(pipe)
    arguments = ["export", files / "plain.pt", "--target", "nir", "-o", tmp_path / "m.nir", "--input", pipe]
    process = subprocess.Popen([sys.executable, "-m", "spikedeploy", *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    with pipe.open("wb"):  # returns when the command has opened it, and waits for its first byte
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and shown.strip() == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_output_into_a_closed_pipe_is_no_error(files: Path) -> None:
    command = f"{sys.executable} -m spikedeploy inspect {files / 'plain.pt'} --json | head -c 5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.stdout == '{\n  "'
