"""The NIR exporter: what it writes, that it is the same every time, what it refuses, and that nothing half-done reaches the disk."""

from __future__ import annotations

import errno
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
from spikedeploy.errors import BadInput, ModelRefused, NotEquivalent
from spikedeploy.exporters import atomic
from spikedeploy.exporters import nir as target
from spikedeploy.exporters.nir import PROFILES, export, write
from spikedeploy.exporters.nir_check import check
from spikedeploy.program import Output, Program
from spikedeploy.readers.nir import from_bytes, read
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


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_named_is_the_memory_and_not_a_part_of_its_layer(profile: str) -> None:
    import torch

    from spikedeploy import convert, nn

    for layer, text in (
        (nn.AssociativeLeaky(4, 2, 3), "a matrix-valued memory"),
        (nn.SpikingSSMBlock(4, states=2), "a complex state-space"),
    ):
        with pytest.raises(ModelRefused, match=f"NIR has no node for {text}.*Use --target onnx") as caught:
            export(convert(layer.eval(), torch.zeros(3, 2, 4)), profile=profile)
        assert type(layer).__name__ in str(caught.value) or "S4D" in str(caught.value)


def with_step(step: Any) -> Program:
    base = nets.dense((4, 4), (0.9,))
    return Program((4,), (*base.steps, step), (Output("out", step.name),))


def flat_kernel() -> Program:
    conv = S.Conv2d("conv", ("input",), np.ones((1, 1, 3, 2), np.float32))
    return Program((1, 5, 5), (conv, *nets.layer("lif", "conv", 0.5)), (Output("spk", "lif"),))


@pytest.mark.parametrize(
    ("program", "profile", "text"),
    [
        (
            lambda: with_step(S.LayerNorm("norm", ("lif0",), None, None)),
            "generic",
            "layer 3 'norm' (LayerNorm): NIR has no node for LayerNorm",
        ),
        (lambda: with_step(S.Activation("act", ("lif0",), "relu")), "generic", "an activation function"),
        (lambda: with_step(S.Nearest("q", ("lif0",), np.array([0.0, 1.0]))), "spec", "state_quant"),
        (lambda: with_step(S.Reshape("grid", ("lif0",), (2, 2))), "generic", "NIR can only flatten"),
        (lambda: with_step(S.Threshold("late", ("fc0",), np.array(0.5), strict=False)), "generic", "it fires at its threshold (>=)"),
        (lambda: nets.reset("subtract"), "generic", "a reset by subtraction"),
        (lambda: nets.dense((4, 4), (1.0,)), "norse", "a decay of 1 (no leak)"),
        (lambda: nets.dense((4, 4), (0.9,), ([-1.0, 1, 1, 1],)), "snntorch", "a threshold below zero"),
        (lambda: replace(nets.dense((4, 4), (0.9,)), outputs=(Output("mem", "lif0.mem"),)), "norse", "it needs a LI node"),
        (lambda: with_step(S.Delay("late", ("lif0",), 2)), "norse", "has no Delay node"),
        (lambda: nets.conv(padded=True), "norse", "a pool with padding"),
        (lambda: nets.conv(), "spyx", "channels-last"),
        (flat_kernel, "spec", "a kernel of 3 x 2"),
    ],
)
def test_what_a_target_cannot_carry_is_refused_by_name(program: Callable[[], Program], profile: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused) as caught:
        write(program(), tmp_path / "a.nir", profile=profile)
    assert text in str(caught.value)
    assert "'" in str(caught.value).split(":")[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"profile": "loihi7"}, "one of generic, spec"),
        ({"dt": -1.0}, "a time step above zero"),
        ({"dt": float("nan")}, "a time step above zero"),
        ({"profile": "snntorch", "dt": 1e-3}, "always takes 0.0001"),
        ({"profile": "norse", "discretisation": "exact"}, "euler is needed"),
        ({"profile": "spec", "discretisation": "magic"}, "euler or exact"),
    ],
)
def test_options_are_checked(options: Any, text: str) -> None:
    with pytest.raises(BadInput) as caught:
        export(nets.dense((3, 2), (0.5,)), **options)
    assert text in str(caught.value)


def test_an_analog_skip_is_refused_where_it_cannot_be_carried() -> None:
    rng = np.random.default_rng(0)
    steps = [nets.affine(rng, "fc1", "input", 5, 5), *nets.layer("lif1", "fc1", 0.9), S.Add("skip", ("lif1", "input"))]
    program = Program((5,), (*steps, *nets.layer("lif2", "skip", 0.5)), (Output("spk", "lif2"),))
    with pytest.raises(ModelRefused, match="relay neurons carry spikes only"):
        export(program, profile="norse")
    x = nets.signal(program)
    assert np.array_equal(run(from_bytes(export(program)), x).outputs["spk"], run(program, x).outputs["spk"])


# --- the check before anything is handed out ----------------------------------------------------------------------


def edited(program: Program, name: str, **changes: Any) -> Program:
    return replace(program, steps=tuple(replace(step, **changes) if step.name == name else step for step in program.steps))


def mutants() -> dict[str, tuple[Program, Program]]:
    plain, graded, skip = nets.dense((6, 6, 6), (0.9, 0.8)), nets.dense((6, 6, 6), (0.9, 0.8), amplitude=0.81), nets.residual()
    moved = (*plain.steps[:3], S.Delay("late", ("lif0",), 1), replace(plain.step("fc1"), inputs=("late",)), *plain.steps[4:])
    return {
        "beta for exp(-1/tau)": (plain, edited(plain, "lif0.mem", decay=np.array(0.88))),
        "one graded factor": (graded, edited(graded, "lif0", amplitude=np.array(0.9))),
        "a dropped skip": (skip, edited(skip, "skip3", inputs=("lif2",))),
        "a transposed weight": (plain, edited(plain, "fc1", weight=plain.step("fc1").weight.T)),
        "one step late": (plain, replace(plain, steps=moved)),
    }


@pytest.mark.parametrize("name", mutants())
def test_planted_faults_are_found(name: str) -> None:
    program, wrong = mutants()[name]
    right, artifact = (from_bytes(export(form, profile="spec")) for form in (program, wrong))
    check(program, right, {}, ())
    with pytest.raises(NotEquivalent, match=r"\d+ spikes differ"):
        check(program, artifact, {}, ())


def test_firing_at_the_threshold_is_never_written() -> None:
    """NIR fires above it; the dyadic models of these tests have ties, so a reader with >= would show."""
    program = nets.dyadic()
    x = np.round(nets.signal(program) * 2) / 2
    late = edited(program, "lif1", strict=False)
    assert np.any(run(late, x, record=["lif1"]).wires["lif1"] != run(program, x, record=["lif1"]).wires["lif1"])
    with pytest.raises(ModelRefused, match=r"\(>=\)"):
        export(late)


def test_a_layer_that_is_missing_is_found() -> None:
    with pytest.raises(NotEquivalent, match="layer 'lif1': it is missing"):
        check(nets.dense((4, 5, 3), (0.9, 0.8)), nets.dense((4, 3), (0.9,)), {}, ())


def test_nothing_is_written_when_the_check_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = nets.dense((4, 5, 3), (0.9, 0.8))
    monkeypatch.setattr(target, "from_bytes", lambda data: edited(from_bytes(data), "lif0.mem", decay=np.array(0.5)))
    with pytest.raises(NotEquivalent, match=r"layer 'lif0': \d+ spikes differ"):
        write(program, tmp_path / "a.nir")
    assert list(tmp_path.iterdir()) == []


# --- writing ------------------------------------------------------------------------------------------------------


def test_write_and_read(tmp_path: Path) -> None:
    program = nets.per_channel((5, 7, 3))
    path = write(program, tmp_path / "a.nir", profile="norse")
    assert path.read_bytes() == export(program, profile="norse")
    assert read(path).digest == from_bytes(path.read_bytes()).digest
    assert (path.stat().st_mode & 0o777) == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failing_write_leaves_the_old_file(
    call: str, error: OSError, old: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "a.nir"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(atomic.os, call, failing(error))
    with pytest.raises(BadInput, match=f"{error.strerror}.*nothing was changed"):
        atomic.write_bytes(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([] if old is None else [("a.nir", old)])


def test_an_interrupted_write_leaves_nothing_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic.os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        atomic.write_bytes(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.nir", b"old")]


def test_a_really_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the bytes half way, as a full disk does."""
    path = tmp_path / "a.nir"
    path.write_bytes(b"old")
    script = (
        "import resource, signal, sys\nfrom spikedeploy.exporters.atomic import write_bytes\nfrom spikedeploy.errors import BadInput\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try:\n    write_bytes(sys.argv[1], b'x' * 1000000)\nexcept BadInput as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.nir", b"old")]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "no" / "a.nir", "does not exist"), (tmp_path, "it is a directory")):
        with pytest.raises(BadInput, match=text):
            atomic.write_bytes(path, b"new")


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.nir", tmp_path / "link.nir"
    real.write_bytes(b"old")
    link.symlink_to(real)
    atomic.write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_pipe_or_a_device_is_written_to_not_replaced(tmp_path: Path) -> None:
    from threading import Thread

    pipe, found = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    atomic.write_bytes(pipe, b"new")
    reader.join(10)
    assert found == [b"new"] and pipe.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]
