"""The experiments do what they say, on small jobs; and their page says what their figures say."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # what loading an example adds is taken back


def figures(name: str, folder: Path) -> Any:
    """Of a quick run, which has drawn them, too."""
    module = importlib.import_module(f"examples.experiments.{name}")
    module.EXPERIMENT.main(["--quick", "--out", str(folder)])
    assert (folder / f"experiment-{name}.svg").read_text("utf-8").endswith("</svg>\n")
    return json.loads((folder / f"experiment-{name}.json").read_text("utf-8"))


def test_the_command_of_the_page_is_one() -> None:
    command = [sys.executable, "-m", "examples.experiments.stragglers", "--help"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "--quick" in shown.stdout


def test_load_balancing_takes_work_from_the_slow_and_the_job_learns_all_the_same(tmp_path: Path) -> None:
    found = figures("stragglers", tmp_path)
    assert found["speed"] == sorted(found["speed"])
    assert found["off"]["epochs"] == [[8, 8, 8]] * 4
    slowest = found["on"]["epochs"][0]
    assert slowest == [8, 4, 2]  # late in both rounds by the declared times alone
    assert min(found["off"]["round_trip_s"][0]) > found["target_s"]
    assert all(found[name]["accuracy"][-1] > 0.8 for name in ("off", "on"))


def test_a_job_comes_to_its_end_with_two_fifths_of_its_learners_killed(tmp_path: Path) -> None:
    none, most = figures("killed", tmp_path)["killed"]
    assert none["num_updates"] == [10, 10, 10, 10]
    assert most["num_updates"] == [10, 6, 6, 6]  # 75 % of all ten would have been 8
    assert most["reason"] == none["reason"] == "4 rounds"
    assert most["round_s"][1] > 3 * 0.5  # it has to be noticed that nothing is heard of them
    assert most["accuracy"][1] == pytest.approx(none["accuracy"][1], abs=0.01)
    assert 0.2 < most["accuracy"][-1] < none["accuracy"][-1]


def test_every_protocol_learns_from_as_many_updates_each_in_its_way(tmp_path: Path) -> None:
    found = figures("protocols", tmp_path)["found"]["alike"]
    versions = {name: len(run["accuracy"]) - 1 for name, run in found.items()}
    assert versions == {"synchronous": 4, "semi-synchronous": 4, "FedAsync": 16, "FedBuff": 8}
    assert {run["num_updates"] for run in found.values()} == {16}
    assert all(run["accuracy"][-1] > 0.8 for run in found.values())
    assert found["semi-synchronous"]["num_steps"] > found["synchronous"]["num_steps"]
    assert found["FedAsync"]["most_updates"] > found["synchronous"]["most_updates"] == 4


def test_scaffold_is_ahead_on_shards_and_sends_more(tmp_path: Path) -> None:
    found = figures("rules", tmp_path)["found"]["shards"]
    (fedavg,), (scaffold,) = found["FedAvg"], found["SCAFFOLD"]
    assert scaffold["accuracy"][-1] > fedavg["accuracy"][-1] + 0.1
    assert scaffold["num_bytes"] > 1.5 * fedavg["num_bytes"]  # on a busy machine, a task may go out twice


def test_page_readme_and_pictures_are_those_of_the_figures(tmp_path: Path) -> None:
    page = importlib.import_module("examples.experiments.page")
    assert page.PAGE.read_text("utf-8") == page.page()
    text = page.README.read_text("utf-8")
    assert text == page.readme(text)
    assert text.count("docs/pictures/experiment-") == 2
    for experiment in page.EXPERIMENTS:
        (tmp_path / f"experiment-{experiment.name}.json").write_text(
            json.dumps(experiment.figures()), "utf-8"
        )
        experiment.main(["--redraw", "--out", str(tmp_path)])
        name = f"experiment-{experiment.name}.svg"
        assert len((tmp_path / name).read_bytes()) == pytest.approx(
            (ROOT / "docs" / "pictures" / name).stat().st_size, rel=0.02
        )
