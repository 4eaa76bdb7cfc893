"""Address events from files: the spikes of the dense array in every command, and one sentence for whatever is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spikedeploy
from spikedeploy import cli
from spikedeploy.errors import BadInput
from spikedeploy.inputs import Recording, fitted, for_engine, load
from spikedeploy.nn import AssociativeLeaky, Leaky, OverTime
from spikedeploy.runtime import EventEngine, Events

torch.set_num_threads(1)

T, B, P, H, W = 13, 3, 2, 5, 7
STAMPS = np.int64(1000)


class Camera(nn.Module):
    """`(T, B, 2, 5, 7)` -> spikes per class `(B, 3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif1 = OverTime(nn.Conv2d(P, 4, 3)), Leaky(beta=0.8, threshold=0.5, reset_mechanism="subtract")
        self.fc, self.lif2 = nn.Linear(4 * 3 * 5, 3), Leaky(beta=0.9, threshold=0.02)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.lif1(self.conv(x))
        spikes, _ = self.lif2(self.fc(spikes.flatten(2)))
        return spikes.sum(dim=0)


def camera() -> nn.Module:
    torch.manual_seed(5)
    return Camera().eval()


def columns(seed: int = 0, count: int = 300) -> dict[str, Any]:
    """Unsorted events in microseconds, several at one place and step among them."""
    rng = np.random.default_rng(seed)
    limits = {"t": T * STAMPS, "x": W, "y": H, "p": P, "sample": B}
    found: dict[str, Any] = {name: rng.integers(0, limit, count) for name, limit in limits.items()}
    found["t"][-1], found["sample"][-1] = T * STAMPS - 1, B - 1
    return found


def dense(events: dict[str, Any]) -> np.ndarray:
    """The loop that says what a file means."""
    x = np.zeros((T, B, P, H, W), np.float32)
    for i in range(len(events["t"])):
        x[events["t"][i] // STAMPS, events["sample"][i], events["p"][i], events["y"][i], events["x"][i]] += 1
    return x


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    events = columns()
    x = dense(events)
    spikedeploy.save(camera(), folder / "camera.pt", torch.from_numpy(x))
    torch.manual_seed(1)
    spikedeploy.save(
        nn.Sequential(AssociativeLeaky(P * H * W, 3, 4, threshold=0.1), nn.Linear(9, 3)), folder / "gen2.pt", torch.zeros(4, 2, 70)
    )
    assert cli.outcome(["export", str(folder / "camera.pt"), "--target", "onnx"]) == 0
    labels = np.array([0, 2, 1])
    np.savez(folder / "dense.npz", input=x, labels=labels)
    np.savez(folder / "flat.npz", input=x.reshape(T, B, -1), labels=labels)
    np.savez(folder / "raw.npz", **events, shape=(P, H, W), labels=labels)
    index = (events["p"] * H + events["y"]) * W + events["x"]
    np.savez(folder / "index.npz", t=events["t"] // STAMPS, index=index.astype(np.uint16), sample=events["sample"], labels=labels)
    order = np.argsort(events["t"], kind="stable")
    sorted_ = {name: values[order] for name, values in events.items()}
    np.savez(folder / "dt.npz", **sorted_, dt=STAMPS, steps=T, batch=B)
    first = events["sample"] == 0
    fields = np.zeros(int(first.sum()), [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])  # as tonic has them
    for name in fields.dtype.names or ():
        fields[name] = events[name][first]
    np.save(folder / "tonic.npy", fields)
    np.savez(folder / "tonic.npz", events=fields, steps=T, dt=1000.0)
    np.save(folder / "first.npy", x[:, :1])
    return folder


GIVEN = {"raw.npz": ("--event-dt", "1000"), "index.npz": (), "dt.npz": ()}


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.outcome([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def spikes(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> dict[str, np.ndarray]:
    code, _, err = call(capsys, "run", *arguments, "-o", folder / "s.npz")
    assert code == 0, err
    with np.load(folder / "s.npz") as found:
        return {name: found[name] for name in found.files}


@pytest.mark.parametrize("file", GIVEN)
@pytest.mark.parametrize("engine", ["reference", "events", "onnxruntime"])
def test_run_gives_the_spikes_of_the_dense_array(
    file: str, engine: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = (files / ("camera.onnx" if engine == "onnxruntime" else "camera.pt"), "--engine", engine)
    expected = spikes(capsys, tmp_path, *model, "--input", files / "dense.npz")
    found = spikes(capsys, tmp_path, *model, "--input", files / file, *GIVEN[file])
    assert expected.keys() == found.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)
    assert 0 < expected["spikes.lif1"].mean() < 1 and 0 < expected["spikes.lif2"].mean() < 1


@pytest.mark.parametrize(("file", "more"), [("tonic.npy", ("--event-dt", "1000")), ("tonic.npz", ())])
def test_structured_arrays_as_tonic_has_them(
    file: str, more: tuple[str, ...], files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = load(files / file, 1000.0).dense(spikedeploy.convert(spikedeploy.load(files / "camera.pt")))
    assert np.array_equal(x, np.load(files / "first.npy")[: len(x)])
    found = spikes(capsys, tmp_path, files / "camera.pt", "--input", files / file, *more, "--engine", "events")
    np.save(tmp_path / "part.npy", x)
    expected = spikes(capsys, tmp_path, files / "camera.pt", "--input", tmp_path / "part.npy", "--engine", "events")
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_engine_gets_the_events_themselves(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program = spikedeploy.convert(spikedeploy.load(files / "camera.pt"))
    source, batch = for_engine(program, load(files / "index.npz"))
    assert isinstance(source, Events) and batch == B

    def never(*_: object) -> None:
        raise AssertionError("a dense copy was made")

    monkeypatch.setattr(Recording, "dense", never)
    assert call(capsys, "run", files / "camera.pt", "--input", files / "index.npz", "--engine", "events")[0] == 0


@pytest.mark.parametrize("file", GIVEN)
@pytest.mark.parametrize(
    "command",
    [
        ("report", "camera.pt", "--json", "--input"),
        ("verify", "camera.pt", "camera.onnx", "--json", "--input"),
        ("verify", "camera.pt", "--json", "--input"),
        ("export", "camera.pt", "--target", "onnx", "-o", "again.onnx", "--json", "--input"),
    ],
)
def test_every_command_says_the_same(
    command: tuple[str, ...], file: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    found = [call(capsys, *command, name, *more) for name, more in (("dense.npz", ()), (file, GIVEN[file]))]
    assert [code for code, *_ in found] == [0, 0]
    assert found[0][1].replace("dense.npz", file) == found[1][1]


def test_sweep_with_labels_over_a_flat_input(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        json.loads(call(capsys, "sweep", files / "gen2.pt", "--data", files / name, "--topk-k", "1.0,1", "--json", *more)[1])
        for name, more in (("flat.npz", ()), ("raw.npz", ("--event-dt", "1000")), ("index.npz", ()))
    ]
    assert found[0] == found[1] == found[2] and found[0]["accuracy_against"] == "labels"


def test_a_frame_tells_the_shape_of_a_model_saved_without_an_example(
    tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(nn.Sequential(nn.Conv2d(P, 3, 3)), tmp_path / "image.pt")
    refused = call(capsys, "inspect", tmp_path / "image.pt", "--input", files / "index.npz")
    assert refused[0] == 2 and "of address events, with their 'shape'" in refused[2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 5), st.floats(-4, 4, width=32)), max_size=20),
    st.integers(5, 7),
)
def test_dense_form_and_engine_agree_on_any_events(events: list[tuple[int, int, int, float]], steps: int) -> None:
    t, sample, index, value = (np.array(column) for column in zip(*events, strict=True)) if events else (np.zeros(0, np.int64),) * 4
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 4), Leaky(beta=0.7, threshold=0.4))
    program = spikedeploy.convert(model, torch.zeros(3, 2, 6))
    data = Recording("r", t, {"index": index}, steps, 2, sample, value.astype(np.float32))
    source, batch = for_engine(program, data)
    one, two = (EventEngine(program, batch).run(x, record=["input"]) for x in (source, fitted(program, data)))
    assert one.wires["input"].tobytes() == (two.wires["input"] + np.float32(0)).tobytes()
    assert all(one.outputs[name].tobytes() == two.outputs[name].tobytes() for name in one.outputs)


def test_one_step_and_a_silent_recording(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "one.npz", t=[0], x=[3], y=[2], p=[1])
    np.savez(tmp_path / "none.npz", t=[], index=[], steps=4, batch=2)
    for name in ("one.npz", "none.npz"):
        for engine in ("events", "reference"):
            assert call(capsys, "run", files / "camera.pt", "--input", tmp_path / name, "--engine", engine)[0] == 0


def test_a_single_channel_needs_no_polarity(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OverTime(nn.Conv2d(1, 2, 3)), Leaky(beta=0.5))
    program = spikedeploy.convert(model, torch.zeros(3, 2, 1, 4, 5))
    np.savez(tmp_path / "e.npz", t=[0, 2], x=[4, 0], y=[0, 3])
    np.savez(tmp_path / "constant.npz", t=[0, 2], x=[4, 0], y=[0, 3], p=[0, 0])
    for name in ("e.npz", "constant.npz"):
        x = load(tmp_path / name).dense(program)
        assert x.shape == (3, 1, 1, 4, 5) and x.sum() == 2 and x[0, 0, 0, 0, 4] == x[2, 0, 0, 3, 0] == 1


def test_times_are_cut_by_floor(tmp_path: Path) -> None:
    program = spikedeploy.convert(nn.Sequential(nn.Linear(3, 2), Leaky(beta=0.5)), torch.zeros(3, 2, 3))
    for t, dt in (([0, 999, 1000, 2999], 1000), (np.array([0, 0.0999, 0.1, 0.25]), 0.1), (np.float32([0, 0.5, 1, 2.5]), 1.0)):
        np.savez(tmp_path / "e.npz", t=t, x=[0, 1, 2, 0], dt=dt)
        assert np.argwhere(load(tmp_path / "e.npz").dense(program)[:, 0]).tolist() == [[0, 0], [0, 1], [1, 2], [2, 0]]


GOOD: dict[str, Any] = {"t": [0, 1, 2], "x": [0, 1, 6], "y": [0, 1, 4], "p": [0, 1, 1]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": [0, 1, 7]}, "'x' goes up to 7; it must lie in [0, 7) for this model"),
        ({"p": [0, 1, 2]}, "'p' goes up to 2; it must lie in [0, 2)"),
        ({"p": [-1, 1, 1]}, "'p' has a value of -1; whole numbers from 0"),
        ({"t": [0, -1, 2]}, "'t' has a value of -1; whole numbers from 0"),
        ({"t": [0.0, 1.5, 2.0]}, "'t' is float64 of shape (3,); (3,) whole numbers are needed. Say how long a step is: --event-dt"),
        ({"t": [0.0, np.nan, 2.0], "dt": 1}, "'t' has a value of nan"),
        ({"t": [0.0, -0.5, 2.0], "dt": 1}, "'t' has a value of -0.5"),
        ({"t": [0.0, 1e300, 2.0], "dt": 1e-300}, "'t' has a value of 1e+300"),
        ({"t": ["a", "b", "c"]}, "'t' is <U1 of shape (3,)"),
        ({"t": ["a", "b", "c"], "dt": 1}, "'t' is <U1 of shape (3,)"),
        ({"t": [0, 1]}, "'p' is int64 of shape (3,); (2,) whole numbers are needed"),
        ({"t": 3}, "'t' is int64 of shape ()"),
        ({"t": [0, 1, 1_500_000_000_000_000]}, "'t' goes up to step 1,500,000,000,000,000; fewer than 2,147,483,648 steps are needed. Say"),
        ({"t": [0, 1, 1_500_000_000]}, "1,500,000,001 steps of 1 samples; at most 268,435,456 together are used"),
        ({"t": np.array([0, 1, 2**64 - 1], np.uint64)}, "'t' has a value of 18446744073709551615"),
        ({"x": [0.0, 1.0, 2.0]}, "'x' is float64 of shape (3,)"),
        ({"x": [[0], [1], [2]]}, "an array of shape (3, 1); (T, B, 2, 5, 7) is needed"),
        ({"x": None}, "no array 'x'; a frame of shape (2, 5, 7) needs p, y, x"),
        ({"p": None}, "no array 'p'; a frame of shape (2, 5, 7) needs p, y, x"),
        ({"index": [0, 1, 2]}, "address events with t, x, y, p, index; t and either index, or x"),
        ({"x": None, "y": None, "p": None}, "address events with t; t and either index, or x (and y, p), are needed"),
        ({"x": None, "y": None, "p": None, "index": [0, 1, 70]}, "'index' goes up to 70; it must lie in [0, 70)"),
        ({"u": [0]}, "address events with an array 'u'; known are t, index, p, y, x"),
        ({"steps": 2}, "'steps' is 2, and 't' goes up to 2; a whole number beyond all of them is needed"),
        ({"steps": 2.5}, "'steps' is 2.5"),
        ({"steps": [3, 4]}, "'steps' is int64 of shape (2,); one number is needed"),
        ({"batch": 0}, "'batch' is 0"),
        ({"sample": [0, 1, 2], "batch": 2}, "'batch' is 2, and 'sample' goes up to 2"),
        ({"dt": 0}, "a step of length 0.0; a positive finite number is needed"),
        ({"dt": np.inf}, "a step of length inf"),
        ({"value": [1.0, np.nan, 1.0]}, "'value' holds NaN, infinity"),
        ({"value": [1.0, 1.0]}, "'value' is float64 of shape (2,)"),
        ({"shape": [2, 7, 5]}, "events of shape (2, 7, 5); the model takes (2, 5, 7)"),
        ({"shape": [2, 0, 7]}, "'shape' is int64 of shape (3,); some whole numbers from 1 on are needed"),
        ({"shape": [2**40, 2**40]}, "'shape' is (1099511627776, 1099511627776); at most 268,435,456 numbers a step are used"),
        ({"t": [], "x": [], "y": [], "p": []}, "no events and no 'steps'"),
        ({"t": [], "x": np.zeros(0, complex), "y": [], "p": [], "steps": 3}, "'x' is complex128 of shape (0,)"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_words(
    change: dict[str, Any], text: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    for engine in ("events", "reference"):
        code, out, err = call(
            capsys, "run", files / "camera.pt", "--input", tmp_path / "bad.npz", "-o", tmp_path / "o.npz", "--engine", engine
        )
        assert (code, out) == (2, "") and "Traceback" not in err and text in err and "bad.npz" in err, err
        assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("run", "camera.pt", "--input", "dense.npz", "--event-dt", "5"), "option --event-dt: it has no meaning for"),
        (("verify", "camera.pt", "--event-dt", "5"), "option --event-dt: there is no --input"),
        (("run", "camera.pt", "--input", "raw.npz", "--event-dt", "-1"), "a step of length -1.0"),
        (("run", "camera.pt", "--input", "raw.npz", "--event-dt", "nan"), "a step of length nan"),
        (("run", "gen2.pt", "--input", "dt.npz"), "dt.npz: 'p' takes several values; a frame of shape (70,) has no such axis"),
    ],
)
def test_the_option_is_refused_where_it_has_no_meaning(
    arguments: tuple[str, ...], text: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "") and text in err and "Traceback" not in err


def test_tokens_are_no_events(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), Leaky(beta=0.5))
    program = spikedeploy.convert(model, torch.zeros(3, 2, dtype=torch.int64))
    np.savez(tmp_path / "e.npz", t=[0], x=[0])
    for take in (fitted, for_engine):
        with pytest.raises(BadInput, match=r"e\.npz: address events; the model reads whole numbers"):
            take(program, load(tmp_path / "e.npz"))


def test_a_recording_without_a_dense_form_runs_on_events(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spikedeploy.inputs.recording.MAX_VALUES", 60 * 1001)
    np.savez(tmp_path / "long.npz", t=[0, 1000], x=[0, 1], y=[0, 1], p=[0, 1])
    given = (files / "camera.pt", "--input", tmp_path / "long.npz")
    code, _, err = call(capsys, "verify", *given)
    assert code == 2 and "1,001 steps of 1 samples, 70,070 numbers of dense input are needed" in err and "run --engine events" in err
    assert call(capsys, "run", *given, "--engine", "events")[0] == 0
    code, _, err = call(capsys, "run", *given, "--engine", "events", "-o", tmp_path / "o.npz")
    assert code == 2 and "63,063 numbers are the result" in err and not (tmp_path / "o.npz").exists()
