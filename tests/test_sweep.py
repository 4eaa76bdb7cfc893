"""Accuracy against sparsity: where top-k goes in a program, what each point says, and that no number depends on how it was computed."""

from __future__ import annotations

import json
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import zoo

import spikedeploy
from spikedeploy import cli
from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky
from spikedeploy.program import Output, Program
from spikedeploy.report import measure
from spikedeploy.runtime import reference
from spikedeploy.sweep import sweep, with_topk

torch.set_num_threads(1)
X = torch.randn(11, 6, 5, generator=torch.Generator().manual_seed(0))


def trained(kind: type[AssociativeLeaky] | type[DeltaRuleLeaky], **options: float) -> Program:
    torch.manual_seed(3)
    layer = kind(5, 3, 4, threshold=0.2, **options)
    return spikedeploy.convert(torch.nn.Sequential(layer, torch.nn.Linear(9, 4)), X)


def by_hand(v: list[float], k: list[float]) -> Program:
    """A memory without decay and with given projections of an input of one number; every cell above 0.5 spikes."""
    steps = (
        S.Affine("m.v", ("input",), np.array(v, np.float32)[:, None]),
        S.Affine("m.k", ("input",), np.array(k, np.float32)[:, None]),
        S.Affine("m.alpha", ("input",), np.zeros((len(k), 1), np.float32), np.ones(len(k), np.float32)),
        S.MatrixMemory("m.S", ("m.v", "m.k", "m.alpha")),
        S.Threshold("m.spk", ("m.S",), np.array(0.5, np.float32)),
        S.Reshape("m", ("m.spk",), (len(v) * len(k),)),
    )
    return Program((1,), steps, (Output("output", "m"),))


ONES = np.ones((1, 1, 1), np.float32)

# --- the program -----------------------------------------------------------------------------------------------


def test_only_the_largest_keys_and_values_write() -> None:
    sparse = with_topk(by_hand([1.0, -2.0, 1.5], [1.0, 3.0]), k=1, v=2)
    assert [step.name for step in sparse.steps] == ["m.v", "m.k", "m.alpha", "m.v_top", "m.k_top", "m.S", "m.spk", "m"]
    state = reference.run(sparse, ONES, record=["m.S"]).wires["m.S"][0, 0]
    assert state.tolist() == [[0, 0], [0, -6.0], [0, 4.5]]


def test_ties_go_to_the_lowest_index() -> None:
    state = reference.run(with_topk(by_hand([1.0, 1.0], [2.0, -2.0, 2.0]), k=2, v=1), ONES, record=["m.S"]).wires["m.S"][0, 0]
    assert state.tolist() == [[2.0, -2.0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", [AssociativeLeaky, DeltaRuleLeaky])
def test_a_layer_with_topk_is_the_same_program(kind: type[AssociativeLeaky] | type[DeltaRuleLeaky]) -> None:
    assert with_topk(trained(kind), k=0.5, v=2).digest == trained(kind, topk_k=0.5, topk_v=2).digest


@pytest.mark.parametrize("kind", [AssociativeLeaky, DeltaRuleLeaky])
def test_all_of_them_is_the_full_program(kind: type[AssociativeLeaky] | type[DeltaRuleLeaky]) -> None:
    full = trained(kind)
    assert with_topk(full).digest == with_topk(full, k=4, v=3).digest == full.digest
    assert with_topk(full, k=0.75).digest != full.digest  # the fraction is rounded up: 3 of 4


def test_a_layer_trained_with_topk_keeps_its_own() -> None:
    own = trained(AssociativeLeaky, topk_k=2)
    assert with_topk(own, k=2).digest == with_topk(own).digest == with_topk(own, k=4).digest == own.digest
    with pytest.raises(BadInput, match=r"--topk-k of '0\.S': 3 is 3 of 4; the layer was trained to keep 2"):
        with_topk(own, k=3)
    narrower, expected = with_topk(own, k=1), trained(AssociativeLeaky, topk_k=1)
    for name, value in reference.run(expected, X.numpy()).outputs.items():
        assert np.array_equal(reference.run(narrower, X.numpy()).outputs[name], value)


def test_every_memory_is_made_sparse() -> None:
    two = spikedeploy.convert(torch.nn.Sequential(AssociativeLeaky(5, 3, 4), DeltaRuleLeaky(9, 2, 6)), X)
    kept = [step.k for step in with_topk(two, k=0.5, v=0.5).steps if isinstance(step, S.TopK)]
    assert kept == [2, 2, 1, 3]


def test_a_model_without_keys_is_refused() -> None:
    model, x = zoo.MODELS["plain"]()
    with pytest.raises(ModelRefused, match=r"no matrix memory in it \(Threshold\).*AssociativeLeaky, DeltaRuleLeaky.*is needed"):
        with_topk(spikedeploy.convert(model, x), 0.5)


def test_a_count_beyond_the_width_is_refused() -> None:
    with pytest.raises(BadInput, match=r"--topk-v of '0\.S': 4; a count from 1 to 3"):
        sweep(trained(AssociativeLeaky), X.numpy(), topk_v=[4])


# --- the points ------------------------------------------------------------------------------------------------


def test_what_a_point_says_counted_by_hand() -> None:
    """Full: [1, 1] x [1, 2] lights all 4 cells at both steps; the larger key alone lights 2 of them."""
    point = sweep(by_hand([1.0, 1.0], [1.0, 2.0]), np.ones((2, 1, 1)), topk_k=[1]).points[0]
    assert (point.decisions, point.spikes, point.sparsity) == (8, 4, 0.5)
    assert (point.differ, point.divergence, point.first_step, point.output_difference) == (4, 0.5, 0, 1.0)
    assert point.accuracy == 0.0  # cell 1 answers now; before, all were equal and cell 0 did
    assert point.acs == 2 * 4  # two projections of one number to two, at two steps; the weights of alpha are zero
    assert point.macs == 2 * (2 * 1) + 2  # a write is 2 values by 1 key; the decay of 2 cells at the second step


@pytest.mark.parametrize("name", ["gen2", "gen2_plain_readout", "our_gen2", "gen3"])
def test_points_are_what_the_reference_does(name: str) -> None:
    model, x = zoo.MODELS[name]()
    program, data = spikedeploy.convert(model, x), x.numpy()
    result = sweep(program, data, topk_k=[1.0, 0.5], topk_v=[1])
    for point, sparse in zip(result.points, [with_topk(program, 1.0, 1), with_topk(program, 0.5, 1)], strict=True):
        spiking = [step.name for step in program.spiking]
        full, here = (reference.run(p, data, dtype=np.float32, record=spiking) for p in (program, sparse))
        assert point.differ_by_layer == {n: np.count_nonzero(full.wires[n] != here.wires[n]) for n in spiking}
        steps = [t for n in spiking for t in np.argwhere(full.wires[n] != here.wires[n])[:, 0]]
        assert point.first_step == (min(steps) if steps else None)
        worst = max(float(np.abs(full.outputs[n] - here.outputs[n]).max()) for n in full.outputs)
        assert point.output_difference == pytest.approx(worst, rel=1e-3, abs=1e-5)
        total = measure(sparse, data).total
        assert (point.acs, point.macs, point.spikes) == (total.acs, total.macs, total.spikes)


def test_the_full_setting_differs_nowhere() -> None:
    result = sweep(trained(AssociativeLeaky), X.numpy())
    point = result.points[0]
    assert (point.differ, point.first_step, point.output_difference, point.accuracy) == (0, None, 0.0, 1.0)
    assert (point.operations, point.lazy_saved) == (result.full.operations, result.full.lazy_saved)


def test_the_lazy_form_saves_more_of_less_and_exists_for_gen2_only() -> None:
    dense, sparse = (p.lazy_saved for p in sweep(trained(AssociativeLeaky), X.numpy(), topk_k=[1.0, 1], topk_v=[1]).points)
    assert dense is not None and sparse is not None and sparse > dense
    assert sweep(trained(DeltaRuleLeaky), X.numpy()).points[0].lazy_saved is None
    assert sweep(trained(AssociativeLeaky), X.numpy()).full.decisions == 11 * 6 * 12


def test_accuracy_against_labels() -> None:
    program = trained(AssociativeLeaky)
    answers = reference.run(program, X.numpy(), dtype=np.float32).outputs["output"].sum(axis=0).argmax(axis=1)
    labels = np.where(np.arange(6) < 2, answers + 1, answers)
    assert sweep(program, X.numpy(), labels).full.accuracy == pytest.approx(4 / 6)


@pytest.mark.parametrize("labels", [[0, 1], [0.5] * 6, [float("nan")] * 6, [-1] * 6, ["a"] * 6, [[0]] * 6])
def test_labels_that_are_none(labels: list[object]) -> None:
    with pytest.raises(BadInput, match=r"labels: .*; \(6,\) class numbers from 0 are needed"):
        sweep(trained(AssociativeLeaky), X.numpy(), labels)


def test_one_step_and_one_sample() -> None:
    assert sweep(trained(DeltaRuleLeaky), X.numpy()[:1, :1], [2], topk_k=[0.1, 1.0], topk_v=[0.5]).batch == 1


def test_chunks_of_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(trained(AssociativeLeaky), X.numpy(), topk_k=[1])
    monkeypatch.setattr("spikedeploy.sweep.point.CHUNK_BYTES", 2000)
    assert sweep(trained(AssociativeLeaky), X.numpy(), topk_k=[1]).as_dict() == whole.as_dict()


# --- processes -------------------------------------------------------------------------------------------------


def test_two_processes_give_the_same_as_one() -> None:
    program, settings = trained(AssociativeLeaky), {"topk_k": [1.0, 0.5, 1], "topk_v": [1.0, 1]}
    one = sweep(program, X.numpy(), **settings).as_dict()
    assert [(p["topk_k"], p["topk_v"]) for p in one["points"]] == [(1.0, 1.0), (1.0, 1), (0.5, 1.0), (0.5, 1), (1, 1.0), (1, 1)]
    assert sweep(program, X.numpy(), jobs=2, **settings).as_dict() == one
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert sweep(program, X.numpy(), **settings).as_dict() == one


def test_the_back_end_around_it_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    original = joblib.Parallel.__call__

    def watch(parallel: joblib.Parallel, tasks: object) -> object:
        used.append(f"{type(parallel._backend).__name__} {parallel.n_jobs}")
        return original(parallel, tasks)

    monkeypatch.setattr(joblib.Parallel, "__call__", watch)
    with joblib.parallel_config(backend="threading", n_jobs=3):
        sweep(trained(AssociativeLeaky), X.numpy(), topk_k=[1.0, 1])
    assert used == ["ThreadingBackend 3"]


def test_no_jobs_is_refused() -> None:
    with pytest.raises(BadInput, match="0 jobs"):
        sweep(trained(AssociativeLeaky), X.numpy(), jobs=0)


def test_more_processes_than_points_are_not_made() -> None:
    program = trained(AssociativeLeaky)
    assert sweep(program, X.numpy(), jobs=10**6).as_dict() == sweep(program, X.numpy()).as_dict()


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    torch.manual_seed(3)
    model = torch.nn.Sequential(AssociativeLeaky(5, 3, 4, threshold=0.2), torch.nn.Linear(9, 4))
    spikedeploy.save(model, folder / "m.pt", X)
    np.savez(folder / "xy.npz", x=X.numpy(), y=np.arange(6) % 4)
    np.savez(folder / "bad.npz", x=X.numpy(), y=np.array([None] * 6))
    np.save(folder / "x.npy", X.numpy())
    plain, x = zoo.MODELS["plain"]()
    spikedeploy.save(plain, folder / "plain.pt", x)
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.outcome(["sweep", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_table_json_and_figure_say_the_same(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (files / "m.pt", "--data", files / "xy.npz", "--topk-k", "1.0, 0.5,1", "--topk-v", "1.0,0.1", "--figure", tmp_path / "f.png")
    code, out, err = call(capsys, *given)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["topk-k", "topk-v", "accuracy", "sparsity"] and lines[1].split()[0] == "full"
    assert "accuracy against the labels" in lines[-2] and lines[-1] == f"wrote {tmp_path / 'f.png'}"
    first = (tmp_path / "f.png").read_bytes()
    assert first.startswith(b"\x89PNG") and [path.name for path in tmp_path.iterdir()] == ["f.png"]
    data = json.loads(call(capsys, *given, "--json")[1])
    assert (tmp_path / "f.png").read_bytes() == first
    for line, point in zip(lines[2:8], data["points"], strict=True):
        shown = line.split()
        assert shown[:2] == [str(point["topk_k"]), str(point["topk_v"])]
        assert shown[2] == f"{point['accuracy']:.2%}" and shown[4:6] == [f"{point['acs']:,}", f"{point['macs']:,}"]
    assert (data["format"], data["accuracy_against"], data["full"]["divergence"]) == ("spikedeploy.sweep", "labels", 0)


def test_without_labels_accuracy_is_agreement(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, files / "m.pt", "--data", files / "x.npy", "--json")
    assert code == 0
    assert json.loads(out)["accuracy_against"] == "the full model" and json.loads(out)["points"][0]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (("--topk-k", "0"), 2, "--topk-k: '0'; fractions in (0, 1] and counts"),
        (("--topk-v", "0.5,1.5"), 2, "--topk-v: '1.5'; fractions in (0, 1] and counts"),
        (("--topk-k", "half"), 2, "--topk-k: 'half'"),
        (("--topk-k", ""), 2, "--topk-k: ''"),
        (("--topk-k", "nan"), 2, "--topk-k: 'nan'"),
        (("--topk-k", "-1"), 2, "--topk-k: '-1'"),
        (("--topk-k", "9" * 5000), 2, "--topk-k: '999"),
        (("--topk-k", "5"), 2, "--topk-k of '0.S': 5; a count from 1 to 4"),
        (("--jobs", "0"), 2, "--jobs: it is 0"),
        (("--figure", "f.pdf"), 2, "its name does not end in .png"),
        (("--figure", "nowhere/f.png"), 2, "there is no directory nowhere"),
        (("--data", "missing.npz"), 2, "missing.npz: there is no such file"),
        (("--data", "bad.npz"), 2, "a .npy or .npz file of numbers is needed"),
        (("--model-file", "plain.pt"), 1, "no matrix memory in it"),
        (("--model-file", "x.npy"), 2, "one of .pt, .pth is needed"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    change: tuple[str, str],
    code: int,
    text: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--model-file": "m.pt", "--data": "xy.npz", "--figure": "out.png", **dict([change])}
    model, data = files / options.pop("--model-file"), files / options.pop("--data")
    flat = [part for pair in options.items() for part in pair]
    found, out, err = call(capsys, model, "--data", data, *flat)
    assert (found, out) == (code, "") and err.startswith("error: ") and text in err, err
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []


def test_a_report_of_a_sparse_model_is_a_point_of_the_sweep(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = json.loads(call(capsys, files / "m.pt", "--data", files / "x.npy", "--topk-k", "0.5", "--topk-v", "1", "--json")[1])["points"][
        0
    ]
    report = ("report", files / "m.pt", "--input", files / "x.npy", "--topk-k", "0.5", "--topk-v", "1")
    assert cli.outcome([*map(str, report), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["total"][name] for name in ("acs", "macs", "spikes")] == [point[name] for name in ("acs", "macs", "spikes")]
    assert found["topk"] == {"k": 0.5, "v": 1} and found["equivalence"]["certificate"]["verdict"] == "equivalent"
    for more, code, said in ((("--topk-k", "0.5,1"), 2, "--topk-k: '0.5,1'"), (("--topk-v", "4"), 2, "a count from 1 to 3")):
        assert cli.outcome([*map(str, report[:4]), *more]) == code
        assert said in capsys.readouterr().err
    assert cli.outcome(["report", str(files / "plain.pt"), "--input", str(files / "x.npy"), "--topk-k", "1"]) == 1
    assert "no matrix memory" in capsys.readouterr().err
