"""The NIR exporter: what it writes, and that it is the same spikes and every time the same bytes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import nir
import nirnets as nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused
from spikedeploy.exporters.nir import PROFILES, export
from spikedeploy.program import Output, Program
from spikedeploy.readers.nir import from_bytes
from spikedeploy.runtime.reference import run

EXACT = [name for name, row in PROFILES.items() if row.exact]


def graph_of(program: Program, **options: Any) -> nir.NIRGraph:
    return nir.read(io.BytesIO(export(program, **options)))


def bounded(x: Any, profile: str) -> Any:
    """The input within what the profile allows."""
    limit = PROFILES[profile].input_range
    return np.clip(x, -limit, limit) if limit else x


# --- the same spikes ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    profile=st.sampled_from(EXACT),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    steps=st.sampled_from([1, 2, 15]),
    thresholds=st.booleans(),
)
def test_reading_back_gives_the_same_spikes(profile: str, sizes: list[int], seed: int, steps: int, thresholds: bool) -> None:
    program = nets.per_channel(sizes, seed, thresholds)
    x = bounded(nets.signal(program, steps=steps), profile)
    artifact = from_bytes(export(program, profile=profile))
    assert np.array_equal(run(artifact, x).outputs["spk"] != 0, run(program, x).outputs["spk"] != 0)


@pytest.mark.parametrize("profile", EXACT)
def test_dyadic_models_are_bit_equal(profile: str) -> None:
    program = nets.dyadic()
    artifact = from_bytes(export(program, profile=profile))
    x = bounded(np.round(nets.signal(program) * 2) / 2, profile)
    for dtype in (np.float32, np.float64):
        want, got = (run(form, x, dtype=dtype, record=["lif1", "lif2"]) for form in (program, artifact))
        assert np.array_equal(want.outputs["spk"], got.outputs["spk"])
        assert np.array_equal(want.outputs["mem"], got.outputs["mem"])
        assert np.array_equal(want.wires["lif1"], got.wires["lif1"])


@pytest.mark.parametrize("how", ["euler", "exact"])
def test_the_time_step_does_not_change_the_model(how: Any) -> None:
    program = nets.per_channel((5, 7, 3))
    x = nets.signal(program)
    want = run(program, x).outputs["spk"]
    for dt in (1e-4, 1e-3, 0.37, 1.0):
        artifact = from_bytes(export(program, profile="spec", dt=dt, discretisation=how))
        assert np.array_equal(run(artifact, x).outputs["spk"], want)


@pytest.mark.parametrize(
    "net", [nets.conv, nets.residual, nets.reset, lambda: nets.conv(kernel=(1, 3), groups=2), lambda: nets.conv(padded=True)]
)
@pytest.mark.parametrize("profile", ["generic", "spec", "snntorch"])
def test_every_layer_keeps_its_name(net: Callable[[], Program], profile: str) -> None:
    program = net()
    artifact = from_bytes(export(program, profile=profile))
    spiking = [step.name for step in program.spiking]
    x = nets.signal(program)
    want, got = (run(form, x, record=spiking) for form in (program, artifact))
    for name in spiking:
        assert np.array_equal(want.wires[name], got.wires[name]), name


def test_truncation_is_a_delay_line() -> None:
    rng = np.random.default_rng(0)
    taps = 3
    steps = (
        nets.affine(rng, "fc", "input", 4, 5),
        S.Delay("lif.delay", ("fc",), taps),
        S.Scale("lif.tail", ("lif.delay",), np.array(-(0.9**taps))),
        S.Add("lif.x", ("fc", "lif.tail")),
        *nets.layer("lif", "lif.x", 0.9),
    )
    program = Program((5,), steps, (Output("spk", "lif"),))
    x = nets.signal(program)
    for profile in ("generic", "spec"):
        got = run(from_bytes(export(program, profile=profile)), x).outputs["spk"]
        assert np.array_equal(got, run(program, x).outputs["spk"])


def flat_neurons() -> Program:
    """Conv2d, neurons on the flattened maps (as snnTorch's are), maps again, pool, Conv2d, neurons."""
    rng = np.random.default_rng(4)
    steps = [
        S.Conv2d("conv1", ("input",), rng.normal(size=(3, 2, 3, 2)).astype(np.float32), rng.normal(size=3).astype(np.float32)),
        S.Reshape("flat1", ("conv1",), (60,)),
        *nets.layer("lif1", "flat1", rng.uniform(0.4, 0.95, 60), amplitude=0.7),
        S.Reshape("maps", ("lif1",), (3, 5, 4)),
        S.SumPool2d("pool", ("maps",), (2, 2), (2, 2), (0, 0)),
        S.Conv2d("conv2", ("pool",), rng.normal(size=(4, 3, 2, 1)).astype(np.float32), None),
        S.Reshape("flat2", ("conv2",), (8,)),
        *nets.layer("lif2", "flat2", rng.uniform(0.4, 0.95, 8)),
    ]
    return Program((2, 7, 5), tuple(steps), (Output("spk", "lif2"),))


@pytest.mark.parametrize("profile", ["generic", "spec", "norse", "snntorch", "spikingjelly"])
def test_a_vector_that_becomes_maps_again_is_written_as_matrices(profile: str) -> None:
    program = flat_neurons()
    graph, artifact = graph_of(program, profile=profile), from_bytes(export(program, profile=profile))
    assert not any(isinstance(node, nir.Conv2d) for node in graph.nodes.values())
    assert any("written as matrices" in note for note in artifact.notes) or "written as matrices" in str(graph.metadata["notes"])
    x = nets.signal(program)
    want, got = run(program, x).outputs["spk"], run(artifact, x).outputs["spk"]
    assert want.any() and np.array_equal(want, got)


def test_no_leak_is_nirs_integrator() -> None:
    program = nets.dense((4, 5), (1.0,))
    graph = graph_of(program, profile="spec")
    assert isinstance(graph.nodes["lif0.mem"], nir.I)
    x = nets.signal(program)
    assert np.array_equal(run(from_bytes(export(program, profile="spec")), x).outputs["spk"], run(program, x).outputs["spk"])


# --- what is in the file ------------------------------------------------------------------------------------------


def test_metadata_says_how_to_read_it() -> None:
    program = replace(nets.dyadic(), notes=("converted somehow",))
    graph = graph_of(program, profile="norse", dt=2e-3)
    meta = graph.metadata
    assert float(meta["dt"]) == 2e-3
    assert (meta["units"], meta["discretisation"], meta["profile"]) == ("s", "euler", "norse")
    assert meta["program"] == program.digest
    assert meta["nir"] == nir.version
    assert "converted somehow" in meta["notes"]
    assert json.loads(meta["readout"]) == [
        {"name": "spk", "reduce": "none", "wire": "lif2"},
        {"name": "mem", "reduce": "mean", "wire": "lif2.mem"},
    ]


@pytest.mark.parametrize("profile", PROFILES)
def test_structure_is_what_readers_want(profile: str) -> None:
    program = nets.per_channel((5, 7, 3))
    graph = graph_of(program, profile=profile)
    assert {"input", "output"} <= graph.nodes.keys()
    assert list(graph.nodes) == sorted(graph.nodes)
    assert len(set(graph.edges)) == len(graph.edges)
    for node in graph.nodes.values():
        for key in ("tau", "tau_syn", "v_threshold", "threshold", "r"):
            if hasattr(node, key):
                assert getattr(node, key).shape == tuple(node.output_type["output"]), key


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import hashlib, nirnets\nfrom spikedeploy.exporters.nir import PROFILES, export\n"
        "for name in PROFILES: print(name, hashlib.sha256(export(nirnets.residual(), profile=name)).hexdigest())"
    )
    found = {"".join(f"{name} {sha256(export(nets.residual(), profile=name)).hexdigest()}\n" for name in PROFILES)}
    for seed in ("0", "12345"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True, cwd=tmp_path)
        found.add(done.stdout)
    assert len(found) == 1


def test_thresholds_go_into_the_weights_where_a_reader_has_one() -> None:
    program = nets.per_channel((5, 7, 3), thresholds=True)
    first, theta = program.step("fc0"), program.step("lif0").threshold
    folded, kept = graph_of(program, profile="snntorch"), graph_of(program, profile="norse")
    assert np.allclose(folded.nodes["fc0"].weight, first.weight / theta[:, None])
    assert np.all(folded.nodes["lif0"].v_threshold == 1)
    assert np.array_equal(kept.nodes["fc0"].weight, first.weight)
    assert np.array_equal(kept.nodes["lif0"].v_threshold, theta)


def test_amplitudes_go_into_the_next_weights() -> None:
    program = nets.dense((5, 7, 3), (0.9, 0.8), amplitude=0.5)
    for profile in ("snntorch", "spec"):
        graph = graph_of(program, profile=profile)
        assert np.allclose(graph.nodes["fc1"].weight, program.step("fc1").weight * 0.5)
    assert isinstance(graph.nodes["lif1.graded"], nir.Scale)


def test_one_decay_per_node_for_spikingjelly() -> None:
    graph = graph_of(nets.per_channel((5, 7, 3)), profile="spikingjelly")
    neurons = [node for node in graph.nodes.values() if isinstance(node, nir.CubaLIF)]
    assert len(neurons) == 7 + 3 + 2  # one per decay, and a row of relays per layer that puts them together
    assert all(len(np.unique(node.tau_syn)) == 1 for node in neurons)


def test_steps_that_no_output_needs_are_left_out() -> None:
    program = nets.dense((5, 7, 3), (0.9, 0.8))
    program = replace(program, outputs=(Output("first", "lif0"),))
    assert {"fc1", "lif1"}.isdisjoint(graph_of(program).nodes)


def test_several_outputs_have_a_node_each() -> None:
    program = replace(nets.dense((5, 7, 3), (0.9, 0.8)), outputs=(Output("last", "lif1"), Output("first", "lif0", "sum")))
    data = export(program)
    assert {"output", "output_first"} <= nir.read(io.BytesIO(data)).nodes.keys()
    x = nets.signal(program)
    want, got = run(program, x), run(from_bytes(data), x)
    assert np.array_equal(want.outputs["last"], got.outputs["last"])
    assert np.array_equal(want.outputs["first"], got.outputs["first"])
    with pytest.raises(ModelRefused, match="second output"):
        export(program, profile="norse")
