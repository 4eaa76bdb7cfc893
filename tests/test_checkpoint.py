"""Checkpoints: what is saved comes back bit for bit, the same model gives the same bytes, and no file does anything but be read."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate
from snntorch.functional import quant
from torch import Tensor, nn

import spikedeploy
from spikedeploy import checkpoint
from spikedeploy.errors import BadInput, ModelRefused, SpikedeployError
from spikedeploy.probe import flatten


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return flatten(model(x))


def same(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    return all(torch.equal(p, q) for p, q in zip(outputs(a, x), outputs(b, x), strict=True))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, x = zoo.MODELS[name]()
    path = tmp_path / "model.pt"
    spikedeploy.save(model, path, x)
    back = spikedeploy.load(path)
    assert same(model, back, x)
    assert same(model, back, torch.cat([x, x, x])[1:]), "another length"
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest
    again = tmp_path / "again.pt"
    spikedeploy.save(back, again, x)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["plain", "conv", "tokens", "learned"])
def test_parameters_keep_their_names_and_learn(name: str, tmp_path: Path) -> None:
    model, x = zoo.MODELS[name]()
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    theirs, ours = dict(model.named_parameters()), dict(back.named_parameters())
    assert theirs.keys() == ours.keys()
    assert set(back.state_dict()) == set(model.state_dict())
    sum(y.sum() for y in flatten(back(x))).backward()
    sum(y.sum() for y in flatten(model(x))).backward()
    for key, value in theirs.items():
        assert (value.grad is None) == (ours[key].grad is None)
        assert value.grad is None or torch.equal(value.grad, ours[key].grad)


def test_the_file_is_plain_data(tmp_path: Path) -> None:
    model, x = zoo.plain()
    spikedeploy.save(model, tmp_path / "model.pt", x)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["format"] == "spikedeploy.checkpoint"
    assert content["version"] == 1
    assert set(content["tensors"]) == set(model.state_dict())
    header = json.loads(content["graph"])
    assert header["layers"]["lif1"]["class"] == "snntorch.StateLeaky"
    assert header["input"] == {"shape": [11, 2, 5], "dtype": "float32"}


def test_the_same_model_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import zoo, spikedeploy; model, x = zoo.tokens(); "
    code += "spikedeploy.save(model, sys.argv[2], x)"
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", code, str(Path(zoo.__file__).parent), str(tmp_path / f"{seed}.pt")], check=True, env=environment
        )
    assert (tmp_path / "0.pt").read_bytes() == (tmp_path / "1.pt").read_bytes()


SURROGATES: dict[str, Callable[[], Any]] = {
    "atan": lambda: surrogate.atan(3.0),
    "fast_sigmoid": lambda: surrogate.fast_sigmoid(10),
    "sigmoid": lambda: surrogate.sigmoid(5),
    "straight_through": surrogate.straight_through_estimator,
    "triangular": lambda: surrogate.triangular(0.5),
    "spike_rate_escape": lambda: surrogate.spike_rate_escape(1, 20),
    "sparse": lambda: surrogate.SFS(25, 0.5),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_stored_by_name_and_number(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), snn.StateLeaky(0.9, 3, spike_grad=SURROGATES[name]()))
    x = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    grads = []
    for m in (model, back):
        y = x.clone().requires_grad_()
        m(y)[0].sum().backward()
        grads.append(y.grad)
    assert torch.equal(*grads)


def test_a_surrogate_of_ones_own_keeps_its_forward(tmp_path: Path) -> None:
    model = nn.Sequential(snn.StateLeaky(0.9, 3, spike_grad=surrogate.custom_surrogate(lambda x, g, s: g)))
    x = 3 * torch.randn(6, 2, 3)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    assert same(model, spikedeploy.load(tmp_path / "model.pt"), x)


def test_quantiser_levels_are_recovered(tmp_path: Path) -> None:
    model = snn.StateLeaky(0.9, 3, state_quant=quant.state_quant(num_bits=3, uniform=False, threshold=0.7), surrogate_disable=True)
    x = torch.randn(6, 2, 3)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    assert same(model, spikedeploy.load(tmp_path / "model.pt"), x)


def test_memory_order_and_sharing_survive(tmp_path: Path) -> None:
    """The bits of a product can depend on the order in memory; a weight used twice stays one parameter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.fc.weight = nn.Parameter(torch.randn(6, 6).t())
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) @ self.fc.weight * self.scale

    model, x = Tied(), torch.randn(4, 2, 6)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    assert same(model, back, x)
    assert back.get_parameter("fc.weight").stride() == (1, 6)
    assert len(list(back.parameters())) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).to(dtype), torch.randn(5, 2, 4, dtype=dtype)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    assert same(model, spikedeploy.load(tmp_path / "model.pt"), x)


def test_modes_are_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    model[2].eval()
    spikedeploy.save(nn.Sequential(model[0], model[1]), tmp_path / "model.pt", torch.zeros(2, 2, 3))
    assert [m.training for m in model] == [True, True, False]


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    error: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = zoo.plain()
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    with pytest.raises(BadInput if isinstance(error, OSError) else type(error)):
        spikedeploy.save(model, path, x)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_refused_model_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="Hardswish"):
        spikedeploy.save(nn.Sequential(nn.Hardswish()), tmp_path / "model.pt", torch.zeros(2, 2, 3))
    with pytest.raises(BadInput, match="does not exist"):
        spikedeploy.save(nn.Linear(3, 3), tmp_path / "nowhere" / "model.pt", torch.zeros(2, 2, 3))
    assert not list(tmp_path.iterdir())


# --- other files that are accepted ---------------------------------------------------------------------------------


def factory() -> nn.Module:
    return zoo.plain()[0]


def test_a_bare_state_dict_needs_its_model(tmp_path: Path) -> None:
    torch.save(zoo.learned()[0].state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BadInput, match=r"a bare state_dict of .* tensors; the model that it belongs to is needed"):
        checkpoint.load_model(tmp_path / "weights.pt")
    with pytest.raises(BadInput, match="it made a dict; a torch module is needed"):
        checkpoint.load_model(tmp_path / "weights.pt", "builtins:dict")


def test_a_factory_may_give_an_example_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the working directory, as a console script would not by itself."""
    model, x = zoo.learned()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    code = f"import sys; sys.path.insert(0, {str(Path(zoo.__file__).parent)!r}); import zoo; make = zoo.learned"
    (tmp_path / "made_here_for_a_test.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    back = checkpoint.load_model("weights.pt", "made_here_for_a_test:make")
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest
    assert str(tmp_path) not in sys.path


def test_a_state_dict_fills_the_model_of_the_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.plain()
    with torch.no_grad():
        model.fc1.weight += 1
    torch.save({"model_state_dict": model.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    module = type(sys)("spikedeploy_test_factory")
    module.make, module.small = factory, lambda: nn.Linear(2, 2)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spikedeploy_test_factory", module)
    back = checkpoint.load_model(tmp_path / "weights.pt", "spikedeploy_test_factory:make")
    assert same(model, back, x)
    for wrong, text in (
        ("nocolon", "it has no colon"),
        ("spikedeploy_test_factory:other", "it failed (AttributeError"),
        ("spikedeploy_test_factory:small", "do not fit"),
    ):
        with pytest.raises(BadInput) as caught:
            checkpoint.load_model(tmp_path / "weights.pt", wrong)
        assert text in str(caught.value)


def test_a_pickled_sequential_of_known_layers(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.LayerNorm(6), nn.ReLU())
    model = nn.Sequential(
        nn.Linear(4, 6), inner, nn.Dropout(0.3), snn.LinearLeaky(torch.full((3,), 0.8), 6, 3, surrogate_disable=True)
    ).eval()
    x = 3 * torch.randn(5, 2, 4)
    torch.save(model, tmp_path / "model.pt")
    back = checkpoint.load_model(tmp_path / "model.pt")
    assert same(model, back, x)
    assert isinstance(back, nn.Sequential)
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest
    with pytest.raises(BadInput):
        spikedeploy.load(tmp_path / "model.pt")


def test_a_pickled_sequential_with_a_neuron_of_ours(tmp_path: Path) -> None:
    neuron = spikedeploy.nn.StateLeaky(0.8, 6, spike_grad=spikedeploy.nn.Surrogate("fast_sigmoid", 10.0), learn_beta=True)
    model, x = nn.Sequential(nn.Linear(4, 6), neuron).eval(), 3 * torch.randn(5, 2, 4)
    torch.save(model, tmp_path / "model.pt")
    back: Any = checkpoint.load_model(tmp_path / "model.pt")
    assert all(torch.equal(one, other) for one, other in zip(model(x), back(x), strict=True))
    assert back[1].spike_grad == neuron.spike_grad


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapped_model_is_taken_off(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.plain()
    torch.save({prefix + key: value + 1 for key, value in model.state_dict().items()}, tmp_path / "weights.pt")
    module = type(sys)("spikedeploy_test_factory")
    module.make = factory  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spikedeploy_test_factory", module)
    back = checkpoint.load_model(tmp_path / "weights.pt", "spikedeploy_test_factory:make")
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
    assert same(model, back, x)


class Returning(nn.Module):
    """A neuron whose spikes and membrane are returned in the way it is given."""

    def __init__(self, result: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.lif, self.result = nn.Linear(4, 3), snn.StateLeaky(0.9, 3), result

    def forward(self, x: Tensor) -> Any:
        return self.result(*self.lif(self.fc(x)))


def test_the_results_of_a_dict_keep_their_order(tmp_path: Path) -> None:
    model, x = Returning(lambda spk, mem: {"spk": spk, "mem": mem, "count": spk.sum(0)}).eval(), torch.randn(5, 2, 4)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    assert list(back(x)) == ["spk", "mem", "count"]
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest


def test_lists_and_tuples_come_back_as_such(tmp_path: Path) -> None:
    model, x = Returning(lambda spk, mem: {"all": [spk, (mem, [spk])]}).eval(), torch.randn(5, 2, 4)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    found = spikedeploy.load(tmp_path / "model.pt")(x)["all"]
    assert [type(found), type(found[1]), type(found[1][1])] == [list, tuple, list]


# --- hostile files -------------------------------------------------------------------------------------------------


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch evil_was_here",)


def refused(path: Path) -> str:
    texts = []
    for read in (spikedeploy.load, checkpoint.load_model):
        with pytest.raises(SpikedeployError) as caught:
            read(path)
        texts.append(str(caught.value))
    assert "weights_only" not in " ".join(texts)
    return texts[0]


def test_a_pickle_that_runs_code_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Evil()}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Evil(), protocol=0))
    torch.save([Evil()], tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("zip", "bare", "old"):
        text = refused(tmp_path / f"{name}.pt")
        assert f"it asks to call {os.system.__module__}.system; only tensors, numbers and known layers are read; nothing" in text
    refused(tmp_path / "legacy.pt")
    assert not (tmp_path / "evil_was_here").exists()


def crafted(code: bytes, records: dict[str, bytes] | None = None, **options: Any) -> bytes:
    """An archive as torch.save writes it around a pickle of our own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in {"data.pkl": code, "version": b"3\n", "byteorder": b"little", **(records or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], count: int) -> bytes:
    """The pickle of `{"w": tensor}` with that geometry over a storage of `count` floats."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value is Ellipsis else None

    class Geometry:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (..., 0, size, stride, False, {})

    buffer = io.BytesIO()
    Writer(buffer, 2).dump({"w": Geometry()})
    return buffer.getvalue()


def test_a_tensor_of_nothing_but_strides_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(crafted(tensor_pickle((10**6, 10**6), (0, 0), 1), {"data/0": b"\0" * 4}))
    assert "declares 1000000000000 entries of a storage of 1" in refused(path)
    path.write_bytes(crafted(tensor_pickle((10**6,), (1,), 10**6), {"data/0": b"\0" * 4}))
    assert "declares 1000000 entries; 4 bytes are there" in refused(path)
    path.write_bytes(crafted(tensor_pickle((4,), (2,), 4), {"data/0": b"\0" * 16}))
    assert "reaches entry 6 of 4" in refused(path)
    path.write_bytes(crafted(tensor_pickle((-4,), (1,), 4), {"data/0": b"\0" * 16}))
    assert "made of something else than a storage and sizes" in refused(path)


def test_a_zip_bomb_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(crafted(tensor_pickle((4,), (1,), 4), {"data/0": b"\0" * 20_000_000}, compression=zipfile.ZIP_DEFLATED))
    assert "records stored uncompressed" in refused(path)
    assert path.stat().st_size < 100_000


def test_pickles_that_only_cost_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(crafted(b"\x80\x02}r\xff\xff\xff\x7f."))
    assert "numbers its objects out of order" in refused(path)
    path.write_bytes(crafted(b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00abc."))
    refused(path)
    path.write_bytes(crafted(b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b"."))
    refused(path)


def test_functions_on_the_list_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(crafted(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x03\x00\x00\x00abcK\x01sb."))
    assert "it tries to change a function" in refused(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h: h["layers"]["fc1"].update({"class": "os.system"}), "this version does not know it"),
        (lambda h: h["nodes"][1].__setitem__(slice(1, 3), ["function", "os.system"]), "the graph calls function 'os.system'"),
        (lambda h: h["nodes"][1].__setitem__(slice(1, 3), ["method", "__reduce__"]), "the graph calls method '__reduce__'"),
        (lambda h: h["layers"]["fc1"]["arguments"].update(in_features=10**9), "its graph is unreadable"),
        (lambda h: h["layers"]["fc1"].pop("arguments"), "its graph is unreadable (KeyError"),
        (lambda h: h["layers"].pop("fc1"), "a tensor 'fc1.bias' of no layer"),
        (lambda h: h["nodes"].append(h["nodes"][0]), "the graph calls input"),
    ],
)
def test_a_graph_can_name_only_what_is_known(change: Callable[[Any], Any], text: str, tmp_path: Path) -> None:
    model, x = zoo.plain()
    spikedeploy.save(model, tmp_path / "model.pt", x)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    header = json.loads(content["graph"])
    change(header)
    torch.save(content | {"graph": json.dumps(header)}, tmp_path / "changed.pt")
    assert text in refused(tmp_path / "changed.pt")


def test_other_kinds_of_files(tmp_path: Path) -> None:
    model, x = zoo.plain()
    spikedeploy.save(model, tmp_path / "model.pt", x)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save(content | {"version": 99}, tmp_path / "new.pt")
    assert "spikedeploy.checkpoint version 99; version 1 is needed" in refused(tmp_path / "new.pt")
    torch.save(content | {"graph": "[" * 100_000}, tmp_path / "deep.pt")
    refused(tmp_path / "deep.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "it holds a list" in refused(tmp_path / "list.pt")
    (tmp_path / "script.pt").write_bytes(crafted(b"\x80\x02}.", {"constants.pkl": b"\x80\x02)."}))
    assert "it is a TorchScript archive" in refused(tmp_path / "script.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert "it is not an archive as torch.save writes it" in refused(tmp_path / "text.pt")
    assert "it does not exist" in refused(tmp_path / "none.pt")
    assert "it is not a regular file" in refused(tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("random") / "model.pt"
    for head in (b"", b"PK\x03\x04", b"\x80\x02"):
        path.write_bytes(head + data)
        refused(path)


@cache
def one_layer() -> bytes:
    return checkpoint.dump(*zoo.one_layer())


@settings(max_examples=150, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_checkpoint_is_refused_or_unchanged(
    position: float, flip: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(one_layer())
    at = int(position * len(data))
    damaged = bytes(data[:at]) if cut else bytes(data[:at]) + bytes([data[at] ^ flip]) + bytes(data[at + 1 :])
    path = tmp_path_factory.mktemp("damaged") / "model.pt"
    path.write_bytes(damaged)
    model, x = zoo.one_layer()
    try:
        back = spikedeploy.load(path)
    except SpikedeployError:
        return
    assert same(model, back, x), "a change that is not noticed must not matter"
