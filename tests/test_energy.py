"""Energy is counts times published prices, or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
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


def changed(**places: object) -> str:
    """The package's own file with other values; `a__b` is `["a"]["b"]` of table 45nm, and `...` takes the entry out."""
    document = json.loads(files("spikedeploy").joinpath("data/energy.json").read_text())
    for place, value in places.items():
        *path, last = place.split("__")
        inner = document if last in document else document["tables"]["45nm"]
        for key in path:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "unreadable"),
        ("[]", "unreadable"),
        ("[" * 100_000, "unreadable .maximum recursion"),
        (changed(format="other"), "unreadable .format 'other'"),
        (changed(version=2), "unreadable"),
        (changed(unit="nJ"), "unit 'nJ'"),
        (changed(tables={}), "0 tables"),
        (changed(tables={"": {}}), "unreadable|there is no"),
        (changed(prices__ac__pJ=-1), "price of ac: -1, a number of pJ is needed"),
        (changed(prices__ac__pJ=True), "price of ac: True"),
        (changed(prices__ac__pJ="0.9"), "price of ac: '0.9'"),
        (changed(prices__ac__pJ=float("nan")), "price of ac: nan"),
        (changed(prices__ac__pJ=10**400), "price of ac: 1000"),
        (changed(prices__ac__pJ=1e300), "price of ac: 1e.300"),
        (changed(prices__ac=...), "each term once, with a price or excluded: ac"),
        (changed(excluded__ac="why not"), "each term once, with a price or excluded: ac"),
        (changed(excluded__rent="dear"), "each term once, with a price or excluded: rent"),
        (changed(excluded=["spikes", "state_bytes", "weight_bytes"]), "unreadable"),
        (changed(excluded__spikes=3), "excluded spikes is 3, a text is needed"),
        (changed(prices__ac__grade=3), "grade of ac is 3"),
        (changed(prices__ac__source=""), "source of ac is ''"),
        (changed(title=...), "there is no 'title' in it"),
        (changed(dense_mac__why=...), "there is no 'why' in it"),
        (changed(quantised_mac__pJ=None), "quantised_mac: None"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=text):
        energy(report(), path=str(path))


def test_a_file_that_is_not_there_and_one_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    with pytest.raises(BadInput, match=r"unreadable .*No such file"):
        energy(report(), path=str(path))
    path.write_text(changed(prices__ac__pJ=2))
    assert energy(report(acs=7), path=str(path)).total == 14
    path.write_text(changed(prices__ac__pJ=3))
    assert energy(report(acs=7), path=str(path)).total == 21


def test_a_total_by_sample() -> None:
    assert energy(replace(report(acs=10), batch=4)).per_sample == pytest.approx(10 * 0.9 / 4)
    assert energy(report(functions=1)).per_sample is None
