"""Files whose layers are arranged differently, or that say nothing of themselves: judged on what they do carry."""

import json
from dataclasses import replace
from pathlib import Path

import nir
import nirnets as nets
import pytest

from spikedeploy.cli import outcome
from spikedeploy.exporters.nir import write
from spikedeploy.program import Output
from spikedeploy.verify import verify


def test_a_membrane_spread_over_several_nodes_is_not_compared_but_the_spikes_are(tmp_path: Path) -> None:
    program = nets.per_channel((5, 7, 3))
    path = write(program, tmp_path / "grouped.nir", profile="spikingjelly")
    certificate = verify(program, path)
    assert certificate.passed
    shown = {check.layer: check.membrane_error for check in certificate.layers if "grouped" in check.party}
    assert set(shown.values()) == {None}
    assert len(shown) == 2


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "last"])
def test_a_file_without_a_readout_is_read_out_as_the_model_is(tmp_path: Path, reduce: str) -> None:
    program = nets.dense((5, 7, 3), (0.9, 0.8))
    program = replace(program, outputs=(Output("output", program.outputs[0].wire, reduce),))  # type: ignore[arg-type]
    graph = nir.read(write(program, tmp_path / "ours.nir"))
    graph.metadata = {}
    nir.write(tmp_path / "stripped.nir", graph)
    certificate = verify(program, tmp_path / "stripped.nir", options={"dt": 1e-4})
    assert certificate.passed
    assert any(f"does not say how to read it out; the model's way is taken: {reduce} over time" in f.text for f in certificate.findings)


def test_the_command_line_says_how_to_cut_time_where_the_file_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = nets.dense((5, 7, 3), (0.9, 0.8))
    graph = nir.read(write(program, tmp_path / "ours.nir", profile="spec", discretisation="exact"))
    graph.metadata = {}
    nir.write(tmp_path / "stripped.nir", graph)
    decays = {}
    for how in ("euler", "exact"):
        assert outcome(["inspect", str(tmp_path / "stripped.nir"), "--discretisation", how, "--dt", "1e-4", "--json"]) == 0
        layers = json.loads(capsys.readouterr().out)["layers"]
        decays[how] = next(layer["decay"] for layer in layers if "decay" in layer)
    assert decays["exact"] == pytest.approx([0.9])
    assert decays["euler"] != pytest.approx([0.9])
