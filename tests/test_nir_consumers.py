"""The exported graphs in norse and in snnTorch's own importer: not one spike may differ."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import nir
import nirnets as nets
import numpy as np
import pytest
import torch

from spikedeploy.exporters.nir import PROFILES, export
from spikedeploy.program import Program
from spikedeploy.runtime.reference import run

torch.set_num_threads(1)


def stepwise(module: Any, x: Any) -> Any:
    """The consumer's module over time, its state handed on; what it puts out, (T, B, ...)."""
    state, found = None, []
    with torch.no_grad():
        for xt in torch.as_tensor(x, dtype=torch.float32):
            y, state = module(xt, state)
            found.append(y.numpy())
    return np.stack(found)


def in_norse(graph: nir.NIRGraph, x: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import norse.torch

        return stepwise(norse.torch.from_nir(graph, dt=float(graph.metadata["dt"])), x)


def in_snntorch(graph: nir.NIRGraph, x: Any) -> Any:
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        return stepwise(import_from_nir(graph), x)


CONSUMERS: dict[str, Callable[[nir.NIRGraph, Any], Any]] = {"norse": in_norse, "snntorch": in_snntorch}
BOTH = [("norse", "norse"), ("snntorch", "snntorch"), ("generic", "norse"), ("generic", "snntorch")]

NETS: dict[str, Callable[[], Program]] = {
    "scalar decay, two layers": lambda: nets.dense((8, 16, 8), (0.9, 0.8)),
    "scalar decay, three layers": lambda: nets.dense((5, 11, 7, 3), (0.95, 0.7, 0.85)),
    "decay per channel, two layers": lambda: nets.per_channel((7, 13, 5)),
    "decay per channel, three layers": lambda: nets.per_channel((9, 12, 7, 3)),
    "decay and threshold per channel": lambda: nets.per_channel((6, 10, 5), thresholds=True),
    "graded spikes": lambda: nets.dense((6, 9, 4), (0.9, 0.6), amplitude=1.69),
    "decay zero": lambda: nets.dense((6, 9, 4), (0.0, 0.5)),
    "convolution": nets.conv,
    "convolution, sum pool, threshold per channel": lambda: nets.conv(np.linspace(0.5, 1.5, 4).reshape(4, 1, 1), mean=False),
    "convolution, 1 x 3 kernel, groups": lambda: nets.conv(kernel=(1, 3), groups=2),
    "residual": nets.residual,
    "residual, graded": lambda: nets.residual(0.64),
    "residual convolution": nets.conv_residual,
    "dyadic, ties": nets.dyadic,
    "reset to zero, one step late": nets.reset,
    "reset to zero, at once": lambda: nets.reset(delay=False),
}


def loaded(program: Program, profile: str) -> nir.NIRGraph:
    return nir.read(io.BytesIO(export(program, profile=profile)))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("profile", "consumer"), BOTH)
def test_no_spike_differs(name: str, profile: str, consumer: str) -> None:
    program = NETS[name]()
    x = nets.signal(program)
    want = run(program, x, dtype=np.float32).outputs["spk"]
    got = CONSUMERS[consumer](loaded(program, profile), x)
    assert 0 < np.count_nonzero(want) < want.size
    assert got.shape == want.shape
    assert np.count_nonzero((got != 0) != (want != 0)) == 0
    assert np.allclose(got, want, rtol=1e-6)  # graded spikes have their amplitude too


@pytest.mark.parametrize(("profile", "consumer"), BOTH)
@pytest.mark.parametrize("steps", [1, 63])
def test_odd_lengths_and_one_step(profile: str, consumer: str, steps: int) -> None:
    program = nets.per_channel((7, 13, 5))
    x = nets.signal(program, steps=steps, batch=2) * 2
    want = run(program, x, dtype=np.float32).outputs["spk"]
    assert want.any()
    assert np.array_equal(CONSUMERS[consumer](loaded(program, profile), x), want)


@pytest.mark.parametrize(("profile", "consumer"), BOTH)
def test_names_that_torch_uses_itself(profile: str, consumer: str) -> None:
    """Layers called `type`, `forward`, `0`, `a.b` beside `a_b`: a reader turns names into attributes."""
    program = nets.dense((4, 5, 6, 7, 3), (0.5, 0.6, 0.7, 0.8))
    new = dict(
        zip(
            ("fc0", "lif0", "fc1", "lif1", "fc2", "lif2", "fc3", "lif3"),
            ("type", "a.b", "0", "a_b", "lambda", "forward", "state", "graph"),
            strict=True,
        )
    )
    renamed = nets.renamed(program, new)
    x = nets.signal(renamed)
    want = run(renamed, x, dtype=np.float32).outputs["spk"]
    assert np.array_equal(CONSUMERS[consumer](loaded(renamed, profile), x), want)


def test_reserved_names_cover_what_torch_uses() -> None:
    from spikedeploy.exporters.nir_build import RESERVED

    used = {name for kind in (torch.nn.ModuleDict(), torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())) for name in dir(kind)}
    assert {name for name in used if not name.startswith("_")} <= RESERVED


def test_a_plain_lif_of_the_same_decay_is_another_model() -> None:
    """Why the profile `lif` exists by name only: how many of its spikes differ stands in the file."""
    program = nets.dense((8, 16, 8), (0.9, 0.8))
    graph = loaded(program, "lif")
    assert "NOT the same model" in graph.metadata["notes"]
    assert not PROFILES["lif"].exact


def test_fan_in_would_be_read_wrongly_without_relays() -> None:
    """No graph for norse has a node with two edges into it."""
    for profile in ("norse", "generic", "spyx"):
        targets = [b for _, b in loaded(nets.residual(), profile).edges]
        assert len(set(targets)) == len(targets), profile
    targets = [b for _, b in loaded(nets.residual(), "snntorch").edges]
    assert len(set(targets)) < len(targets)
