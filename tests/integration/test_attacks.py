"""The benchmark that writes ``docs/attacks.md``, in small, and what the page as it stands says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attacks
from broker_fl.wire.rules import NormClipping, Robust

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"


@pytest.fixture(autouse=True)
def _search_path() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


def rows(text: str) -> dict[str, list[float]]:
    """Accuracies by rule, of the first table."""
    table = text.split("## What each rule withstands")[0]
    found: dict[str, list[float]] = {}
    for name, values in re.findall(r"^\| ([^|]+?) ((?:\| [01]\.\d{3} )+)\|$", table, re.MULTILINE):
        found.setdefault(name, [float(value) for value in values.split("|") if value.strip()])
    return found


def is_robust(rule: dict[str, Any]) -> bool:
    return isinstance(attacks.spec_of(attacks.QUICK, rule).rule, Robust | NormClipping)


def test_the_quick_run_writes_a_page_on_which_robust_rules_do_better_than_fedavg_under_noise(
    tmp_path: Path,
) -> None:
    attacks.main(["--quick", "--out", str(tmp_path / "attacks.md")])
    found = rows((tmp_path / "attacks.md").read_text(encoding="utf-8"))
    assert set(found) == set(attacks.rules(1))
    fedavg = found.pop("FedAvg")
    robust = {title: rule for title, rule in attacks.rules(1).items() if title in found and is_robust(rule)}
    assert len(robust) == 7
    for title in robust:
        in_peace, attacked = found[title]
        assert in_peace > 0.8, title
        assert attacked > fedavg[1] + 0.05, title


def test_the_page_in_the_docs_is_that_of_the_full_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(f"<!-- Written by: {attacks.COMMAND} -->")
    assert set(rows(text)) == set(attacks.rules(attacks.FULL.num_attackers))
    assert attacks.page(attacks.FULL, {}).split("## What each rule withstands")[1] in text
