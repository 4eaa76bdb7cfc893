"""What the NIR exporter refuses by name, and the check of every file before it is handed out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nirnets as nets
import numpy as np
import pytest

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused, NotEquivalent
from spikedeploy.exporters import nir as target
from spikedeploy.exporters.nir import PROFILES, export, write
from spikedeploy.exporters.nir_check import check
from spikedeploy.program import Output, Program
from spikedeploy.readers.nir import from_bytes
from spikedeploy.runtime.reference import run


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
