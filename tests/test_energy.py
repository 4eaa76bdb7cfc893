"""Energy is counts times published prices, or nothing."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from spikedeploy.errors import BadInput
from spikedeploy.report import LayerCount, energy, load_tables
from spikedeploy.report.counts import Report


def report(**counts: int) -> Report:
    none = {"acs": np.zeros(1, np.int64)}
    return Report(1, 1, "", (LayerCount("a", "Affine", **counts),), none, none, {}, {}, 0, 1)


def test_arithmetic_prices() -> None:
    found = energy(report(acs=1000, macs=10, driven=5, idle=2, dense=3000))
    assert found.total == pytest.approx(1000 * 0.9 + 10 * 4.6 + 7 * 4.6)
    assert (found.dense, found.quantised) == (pytest.approx(3000 * 4.6), pytest.approx(3000 * 0.3))
    assert found.of_dense == pytest.approx(found.total / 13800)
    assert "Not included: memory" in found.missing


def test_loihi_prices_and_refusal() -> None:
    found = energy(report(acs=100, driven=3, idle=4, spikes=2, decisions=9), "loihi")
    assert found.total == pytest.approx(100 * 23.6 + 3 * 81 + 4 * 52 + 2 * 1.7)
    refused = energy(report(acs=100, macs=1), "loihi")
    assert refused.total is None and refused.of_dense is None and refused.refused == ("mac",)


def test_memory_is_priced_or_excluded_by_name() -> None:
    counts = {"acs": 8, "state_bytes": 16, "weight_bytes": 32}
    assert energy(report(**counts), "45nm-sram").total == pytest.approx(8 * 0.9 + 48 * 12.5)
    assert energy(report(**counts), "45nm-dram").total == pytest.approx(8 * 0.9 + 16 * 12.5 + 32 * 162.5)
    assert set(energy(report(**counts)).excluded) == {"state_bytes", "weight_bytes", "spikes"}


def test_every_price_has_a_reason_and_every_table_a_source() -> None:
    for table in load_tables().values():
        assert table["source"] and table["grade"] and table["missing"].startswith("Not included")
        assert all(entry["why"] for entry in table["prices"].values())


def test_unknown_table() -> None:
    with pytest.raises(BadInput, match="energy table 'tpu': there is none of this name; one of 45nm"):
        energy(report(), "tpu")


@pytest.mark.parametrize("change", ["format", "price", "term", "json", "gone"])
def test_bad_files(tmp_path: Path, change: str) -> None:
    document = json.loads(files("spikedeploy").joinpath("data/energy.json").read_text())
    table = document["tables"]["45nm"]
    if change == "format":
        document["format"] = "other"
    elif change == "price":
        table["prices"]["ac"]["pJ"] = -1
    elif change == "term":
        del table["prices"]["ac"]
    path = tmp_path / "prices.json"
    path.write_text("{" if change == "json" else json.dumps(document))
    with pytest.raises(BadInput, match="unreadable"):
        energy(report(), path=str(path if change != "gone" else tmp_path / "gone.json"))
