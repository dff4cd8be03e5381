"""docs/record.md names every column of every table, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker_fl.record.export import TABLES, Table
from broker_fl.record.history import History
from broker_fl.wire import events as ev
from tests.unit.record.asynchronous import paced_events

PAGE = Path(__file__).parents[3] / "docs" / "record.md"


def documented(table: str) -> set[str]:
    section = re.split(r"^###? ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"`{table}`"))
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("table", TABLES)
def test_the_page_names_every_column(table: Table) -> None:
    events = [*paced_events(), ev.LearnerLost(job="paced-1", learner="site-01", silent_s=1.0)]
    rows = list(History.of(events).to_rows(table))
    columns = {re.sub(r"\..*", ".<name>", name) for row in rows for name in row}
    assert documented(table) == columns
