"""Energy as counts times published prices. A total is refused where something was counted that has no price; nothing is guessed.

    E = sum over terms of count * price        prices in pJ, from `spikedeploy/data/energy.json`

Beside it, always: a dense network of the same shape (every multiply-accumulate of every step) in float32 and in int8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from spikedeploy.errors import BadInput, message
from spikedeploy.report.counts import Report

TERMS = ("ac", "mac", "driven", "idle", "spikes", "elements", "functions", "state_bytes", "weight_bytes")
FORMAT = "spikedeploy.energy"
LARGEST = 1e12
"""pJ: one joule for one operation is a mistake."""


@dataclass(frozen=True, slots=True)
class Term:
    """One line: `count` operations at `price` pJ; `total` is None where the price is."""

    name: str
    count: int
    price: float | None
    why: str
    source: str
    grade: str

    @property
    def total(self) -> float | None:
        return None if self.price is None else self.count * self.price


@dataclass(frozen=True, slots=True)
class Energy:
    """What one price table says, in pJ, for the whole measured input.

    total        None where refused; `refused` then says which terms have no price
    dense        the dense float32 network of the same shape, every step
    quantised    the same in int8
    excluded     terms that were counted and that the table leaves out on purpose, with its reason
    missing      the sentence about what is not included
    """

    table: str
    title: str
    grade: str
    source: str
    terms: tuple[Term, ...]
    total: float | None
    refused: tuple[str, ...]
    dense: float
    quantised: float
    dense_why: str
    quantised_why: str
    excluded: Mapping[str, str]
    missing: str
    inferences: int

    @property
    def per_sample(self) -> float | None:
        """The total by the number of samples."""
        return None if self.total is None else self.total / self.inferences

    @property
    def of_dense(self) -> float | None:
        """Share of the dense network's energy."""
        return None if self.total is None or not self.dense else self.total / self.dense

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the lines' totals."""
        plain = asdict(self) | {"excluded": dict(self.excluded), "of_dense": self.of_dense, "per_sample": self.per_sample}
        return plain | {"terms": [asdict(term) | {"total": term.total} for term in self.terms]}


def load_tables(path: str | None = None) -> Mapping[str, Mapping[str, Any]]:
    """The price tables by name, from the package or from a file of the same form. Raises `BadInput` on any other file."""
    source = files("spikedeploy").joinpath("data/energy.json") if path is None else Path(path)
    where = "energy table" if path is None else str(path)
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
        if (document["format"], document["version"], document["unit"]) != (FORMAT, 1, "pJ") or not document["tables"]:
            raise ValueError(f"format {document['format']!r}, unit {document['unit']!r}, {len(document['tables'])} tables")
        tables: Mapping[str, Mapping[str, Any]] = document["tables"]
        for name, table in tables.items():
            _check(name, table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = f"there is no {error} in it" if isinstance(error, KeyError) else f"unreadable ({str(error)[:200]})"
        raise BadInput(message(where, found, f"a {FORMAT} version 1 file is needed")) from None
    return tables


def _check(name: str, table: Mapping[str, Any]) -> None:
    """Raises where something is missing, has another form, or is said twice."""
    prices, excluded = table["prices"], table["excluded"]
    sentences = {key: table[key] for key in ("title", "grade", "source", "missing")} | {
        f"excluded {key}": excluded[key] for key in excluded
    }
    for key in ("dense_mac", "quantised_mac"):
        _check_price(f"table {name}, {key}", table[key]["pJ"])
        sentences[f"why of {key}"] = table[key]["why"]
    for term, entry in prices.items():
        if entry["pJ"] is not None:
            _check_price(f"table {name}, price of {term}", entry["pJ"])
        sentences |= {f"{key} of {term}": entry[key] for key in ("why", "source", "grade")}
    for key, text in sentences.items():
        if not (isinstance(text, str) and text):
            raise ValueError(f"table {name!r}: {key} is {text!r}, a text is needed")
    named = [*prices, *excluded]
    wrong = sorted({*(set(TERMS) ^ set(named)), *(term for term in named if named.count(term) > 1)})
    if wrong or not name:
        raise ValueError(f"table {name!r} must have a name, and each term once, with a price or excluded: {', '.join(wrong)}")


def _check_price(where: str, price: Any) -> None:
    if not isinstance(price, int | float) or isinstance(price, bool) or not 0 <= price <= LARGEST:
        raise ValueError(f"{where}: {price!r}, a number of pJ is needed")


def prices_named(names: Sequence[str], path: str | None = None) -> tuple[str, ...]:
    """The tables of these names, each once; all of the file where none is named. Raises `BadInput` for one that does not exist."""
    tables = load_tables(path)
    for name in names:
        if name not in tables:
            raise BadInput(message(f"energy table '{name}'", "there is none of this name", f"one of {', '.join(tables)} is needed"))
    return tuple(dict.fromkeys(names)) or tuple(tables)


def counts_of(report: Report) -> dict[str, int]:
    """The report's counts under the names of the price terms."""
    total = report.total
    return {"ac": total.acs, "mac": total.macs} | {name: int(getattr(total, name)) for name in TERMS[2:]}


def energy(report: Report, table: str = "45nm", *, path: str | None = None) -> Energy:
    """The report's counts at the prices of one table. Raises `BadInput` for a table that does not exist."""
    (table,) = prices_named([table], path)
    chosen, counts = load_tables(path)[table], counts_of(report)
    terms = tuple(
        Term(name, counts[name], entry["pJ"], entry["why"], entry["source"], entry["grade"]) for name, entry in chosen["prices"].items()
    )
    refused = tuple(term.name for term in terms if term.count and term.price is None)
    dense = report.total.dense
    return Energy(
        table=table, title=chosen["title"], grade=chosen["grade"], source=chosen["source"], terms=terms,
        total=None if refused else sum(term.total or 0.0 for term in terms), refused=refused,
        dense=dense * chosen["dense_mac"]["pJ"], quantised=dense * chosen["quantised_mac"]["pJ"],
        dense_why=chosen["dense_mac"]["why"], quantised_why=chosen["quantised_mac"]["why"],
        excluded=dict(chosen["excluded"]), missing=chosen["missing"], inferences=report.batch,
    )  # fmt: skip
