"""The picture of a split, read as a reader's browser reads it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from broker_fl.errors import SettingError
from broker_fl.record.split import MAX_LEARNERS, count, save_split

LABELS = ["cat", "dog", "cat", "eel", "dog", "cat"]
PARTS = [[0, 2, 3], [1, 4, 5]]


def test_counts_are_labels_by_learners() -> None:
    labels, counts = count(PARTS, LABELS)
    assert labels == ["cat", "dog", "eel"]
    assert counts.tolist() == [[2, 1], [0, 2], [1, 0]]


def test_the_picture_is_an_svg_of_its_own_with_the_reports_colours(tmp_path: Path) -> None:
    path = save_split(PARTS, LABELS, tmp_path / "split.svg", title="Pets <&> more")
    root = ElementTree.fromstring(path.read_text("utf-8"))
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"cat", "dog", "eel", "learner", "examples", "Pets <&> more"} <= set(texts)
    style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
    used = {part.partition(")")[0] for part in path.read_text("utf-8").split("var(")[1:]}
    assert used
    assert all(f"{name}: #" in style for name in used)
    assert "prefers-color-scheme: dark" in style


@pytest.mark.parametrize(
    ("parts", "labels", "name", "message"),
    [
        (PARTS, LABELS, "split.png", "split.png: the picture of a split is an SVG"),
        ([], LABELS, "split.svg", "there is nothing to draw"),
        ([[0]] * (MAX_LEARNERS + 1), LABELS, "split.svg", "301 learners and 3 labels are too many"),
        ([np.arange(101)], np.arange(101), "split.svg", "1 learners and 101 labels are too many"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    parts: list[list[int]], labels: list[str], name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        save_split(parts, labels, tmp_path / name)
    assert not list(tmp_path.iterdir())
