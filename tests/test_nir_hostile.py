"""Hostile and damaged NIR files: each is refused with a clear error before its data is read; none reaches another file."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import nirnets as nets
import numpy as np
import pytest

from spikedeploy.errors import BadInput
from spikedeploy.exporters.nir import export
from spikedeploy.readers import hdf5_guard, sandbox
from spikedeploy.readers.nir import from_bytes, read

OURS = export(nets.dense((4, 5, 3), (0.9, 0.8)))


def attacked(path: Path, change: Callable[[h5py.File], None], data: bytes = OURS) -> Path:
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text
    assert "Traceback" not in text
    return text


# --- links and storage that reach elsewhere -----------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["weight"] = np.full((5, 4), 42.0)
        file["type"] = "Affine"
    return path


def test_an_external_link_is_refused(tmp_path: Path, secret: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["node/nodes/fc0/weight"]
        file["node/nodes/fc0/weight"] = h5py.ExternalLink(str(secret), "/weight")

    assert "ExternalLink" in refused(attacked(tmp_path / "a.nir", change))


def test_a_soft_link_is_refused(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["node/nodes/fc0/weight"]
        file["node/nodes/fc0/weight"] = h5py.SoftLink("/node/nodes/fc1/weight")

    assert "SoftLink" in refused(attacked(tmp_path / "a.nir", change))


def test_external_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(np.full(20, 42.0).tobytes())

    def change(file: h5py.File) -> None:
        del file["node/nodes/fc0/weight"]
        file.create_dataset("node/nodes/fc0/weight", (5, 4), "f8", external=[(str(tmp_path / "raw.bin"), 0, 160)])

    assert "in another file" in refused(attacked(tmp_path / "a.nir", change))


def test_virtual_storage_is_refused(tmp_path: Path, secret: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["node/nodes/fc0/weight"]
        layout = h5py.VirtualLayout(shape=(5, 4), dtype="f8")
        layout[:] = h5py.VirtualSource(str(secret), "weight", shape=(5, 4))
        file.create_virtual_dataset("node/nodes/fc0/weight", layout)

    assert "in another file" in refused(attacked(tmp_path / "a.nir", change))


def test_one_object_under_two_names_is_refused(tmp_path: Path) -> None:
    def shared(file: h5py.File) -> None:
        file["node/nodes/copy"] = file["node/nodes/fc0"]

    def cycle(file: h5py.File) -> None:
        file["node/nodes/self"] = file["node"]

    for change in (shared, cycle):
        assert "the same object stands under two names" in refused(attacked(tmp_path / "a.nir", change))


def test_groups_that_nest_too_deep_are_refused(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file.create_group("node/nodes/" + "/".join("deep" for _ in range(30)))

    assert "nested deeper than 16" in refused(attacked(tmp_path / "a.nir", change))


def test_a_reference_or_another_type_is_refused(tmp_path: Path) -> None:
    def reference(file: h5py.File) -> None:
        file.create_dataset("node/nodes/fc0/extra", data=file["node"].ref, dtype=h5py.ref_dtype)

    def compound(file: h5py.File) -> None:
        file["node/nodes/fc0/extra"] = np.zeros(2, [("a", "f4"), ("b", "i4")])

    for change in (reference, compound):
        assert "numbers or text are read" in refused(attacked(tmp_path / "a.nir", change))


# --- bombs ----------------------------------------------------------------------------------------------------


def test_a_small_file_that_expands_is_refused_before_reading(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["node/nodes/fc0/weight"]
        file.create_dataset("node/nodes/fc0/weight", (30_000, 30_000), "f4", chunks=(1000, 1000), compression="gzip", fillvalue=1)

    start = time.monotonic()
    text = refused(attacked(tmp_path / "a.nir", change))
    assert "3600000000" in text
    assert time.monotonic() - start < 5


def test_many_middling_bombs_are_refused_by_their_sum(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        for k in range(70):
            file.create_dataset(f"node/nodes/fc0/w{k}", (2000, 2000), "f4", chunks=True, compression="gzip")

    assert f"at most {hdf5_guard.MAX_BYTES} are read" in refused(attacked(tmp_path / "a.nir", change))


def test_too_many_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_guard, "MAX_OBJECTS", 20)
    with pytest.raises(BadInput, match="more than 20 objects"):
        from_bytes(OURS)


def test_a_flood_of_edges_is_refused(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["node/edges"]
        file.create_dataset("node/edges", data=np.array([["input", "fc0"]] * 50_000, dtype=object), dtype=h5py.string_dtype())
        for key in ("digest", "spikedeploy"):
            del file[f"node/metadata/{key}"]

    refused(attacked(tmp_path / "a.nir", change))


# --- the child process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("while True: pass", "the parser died on it|took over"),
        ("import os; os.abort()", "signal 6"),
        ("x = bytearray(3 << 30)", "exit 1"),
        ("print('pickled rubbish')", "exit 0"),
        ("open(__file__ + '.out', 'wb', 0).write(b'x')", "signal 25|exit 1"),
    ],
)
def test_what_a_parser_may_do_stays_in_the_child(body: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_child.py").write_text(f"import sys\nfrom spikedeploy.readers.sandbox import limit\nlimit(1, 2 << 30)\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BadInput, match=text):
        sandbox.run("evil_child", b"", where="NIR file", seconds=1)


def test_the_childs_own_refusal_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    stream = io.BytesIO()
    nir.write(stream, nir.NIRGraph.from_list(nir.Affine(np.ones((2, 3)), np.ones(5))))
    path.write_bytes(stream.getvalue())
    assert "node 'affine' (Affine): a bias of shape (5,); (2,) is needed." in refused(path)


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\x89HDF", b"\x00" * 1000, b"PK\x03\x04" + bytes(100), b"\x89HDF\r\n\x1a\n" + b"\xff" * 500])
def test_what_is_no_nir_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nir").write_bytes(data)
    assert "is needed" in refused(tmp_path / "a.nir")


def test_missing_and_directory(tmp_path: Path) -> None:
    assert "it cannot be opened" in refused(tmp_path / "none.nir")
    assert "it cannot be opened" in refused(tmp_path)


@pytest.mark.parametrize("kept", [10, 500, 5000, len(OURS) // 2, len(OURS) - 1])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    (tmp_path / "a.nir").write_bytes(OURS[:kept])
    refused(tmp_path / "a.nir")


def test_hdf5_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
    assert "no group 'node'" in refused(path)
    stream = io.BytesIO()
    nir.write(stream, nir.Scale(np.ones(2)))
    path.write_bytes(stream.getvalue())
    assert "it holds a single Scale" in refused(path)


MUTATE = """
import random, signal, sys
from spikedeploy.errors import BadInput
from spikedeploy.readers.nir import from_bytes

def mutated(data, seed):
    draw, found = random.Random(seed), bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)

if __name__ == "__main__":
    data = open(sys.argv[1], "rb").read()
    good = from_bytes(data).digest
    for seed in range(int(sys.argv[2]), int(sys.argv[3])):
        signal.alarm(5)
        try:
            answer = "same" if from_bytes(mutated(data, seed)).digest == good else "WRONG"
        except BadInput:
            answer = "refused"
        print(answer, flush=True)
"""


def test_no_damage_changes_a_value_silently(tmp_path: Path) -> None:
    """Bits flipped anywhere: nothing that matters was hit, or the file is refused. Where HDF5 itself hangs or dies, `read` refuses."""
    (tmp_path / "mutate.py").write_text(MUTATE)
    (tmp_path / "a.nir").write_bytes(OURS)
    answers: list[str] = []
    while len(answers) < 150:
        command = [sys.executable, str(tmp_path / "mutate.py"), str(tmp_path / "a.nir"), str(len(answers)), "150"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answers += done.stdout.split()
        if done.returncode > 0:
            raise AssertionError(done.stderr)
        if done.returncode < 0:
            answers.append("died")
            names: dict[str, Any] = {"__name__": "mutate"}
            exec(MUTATE, names)
            (tmp_path / "b.nir").write_bytes(names["mutated"](OURS, len(answers) - 1))
            refused(tmp_path / "b.nir")
    assert set(answers) <= {"same", "refused", "died"}
    assert answers.count("refused") > 25


def test_an_edited_value_is_found(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["node/nodes/lif0/tau_syn"][0] *= 1.001

    assert "does not match its digest" in refused(attacked(tmp_path / "a.nir", change))


def test_a_digest_that_was_taken_away_is_missed(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["node/metadata/digest"]

    assert "does not match its digest" in refused(attacked(tmp_path / "a.nir", change))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("readout", "[{}]", "readout"), ("readout", "{", "readout"), ("names", '{"no": "x"}', "names"), ("parts", "[1]", "parts")],
)
def test_metadata_of_a_forger_is_checked(key: str, value: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits a file can make its digest match: what stands in it is still not believed."""

    def change(file: h5py.File) -> None:
        del file[f"node/metadata/{key}"]
        file[f"node/metadata/{key}"] = value
        del file["node/metadata/digest"]
        file["node/metadata/digest"] = hdf5_guard.content_digest(hdf5_guard.walk(file), "/node/metadata/digest")

    assert text in refused(attacked(tmp_path / "a.nir", change))
