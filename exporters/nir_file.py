"""A built graph as the bytes of a NIR file: sorted, with metadata and a digest, the same on every run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import h5py
import nir

from spikedeploy.errors import NotEquivalent, message
from spikedeploy.exporters.nir_build import Builder
from spikedeploy.program import Output
from spikedeploy.readers.hdf5_guard import content_digest, walk
from spikedeploy.readers.nir_file import DIGEST


def to_bytes(build: Builder, outputs: tuple[Output, ...], program: str) -> bytes:
    """The file, made from the program of that digest. Its own digest covers every data set but itself, so it is written last."""
    metadata = _metadata(build, outputs, program)
    blank = _write(build, metadata)
    with h5py.File(io.BytesIO(blank), "r") as file:
        digest = content_digest(walk(file), DIGEST)
    return _write(build, {**metadata, "digest": digest})


def _metadata(build: Builder, outputs: tuple[Output, ...], program: str) -> dict[str, Any]:
    profile = build.profile
    return {
        "discretisation": build.discretisation,
        "dt": build.dt,
        "names": _json(build.names),
        "nir": version("nir"),
        "notes": _json([*build.program.notes, *build.notes]),
        "parts": _json(dict(build.parts)),
        "profile": profile.name,
        "program": program,
        "readout": _json([{"name": o.name, "wire": o.wire, "reduce": o.reduce} for o in outputs]),
        "spikedeploy": _own_version(),
        "units": profile.units,
    }


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _own_version() -> str:
    try:
        return version("spikedeploy")
    except PackageNotFoundError:
        return "0"


def _write(build: Builder, metadata: Mapping[str, Any]) -> bytes:
    nodes = {name: _node(kind, params) for name, (kind, params) in sorted(build.nodes.items())}
    try:
        graph = nir.NIRGraph(nodes=nodes, edges=sorted(build.edges), metadata=dict(sorted(metadata.items())))
    except (ValueError, AssertionError, TypeError) as error:
        raise NotEquivalent(message("NIR graph", f"nir refuses it ({error})", "every shape must match")) from None
    if set(graph.nodes) != set(nodes):
        raise NotEquivalent(
            message("NIR graph", f"nodes {sorted(set(graph.nodes) - set(nodes))} lead nowhere", "every node must be connected")
        )
    stream = io.BytesIO()
    nir.write(stream, _Old(graph) if build.profile.no_reset_value else graph)
    return stream.getvalue()


class _Old:
    """The graph as nir 1.0.4 laid it out: no `v_reset` (it is zero in all that we write for readers of that age)."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = self.graph.to_dict()
        for node in found["nodes"].values():
            node.pop("v_reset", None)
        return found


def _node(kind: str, params: dict[str, Any]) -> Any:
    params = dict(params)
    if kind == "Input":
        return nir.Input(input_type={"input": params["shape"]})
    if kind == "Output":
        return nir.Output(output_type={"output": params["shape"]})
    if kind == "Flatten":
        return nir.Flatten(input_type={"input": params.pop("shape")}, **params)
    if kind == "Conv2d":
        params = {**params, "input_shape": tuple(params["input_shape"])}
    return getattr(nir, kind)(**params)
