"""No checkpoint does anything but be read: code, bombs, damage."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from checkpoints import same
from hypothesis import given, settings
from hypothesis import strategies as st

import spikedeploy
from spikedeploy import checkpoint
from spikedeploy.errors import SpikedeployError


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
