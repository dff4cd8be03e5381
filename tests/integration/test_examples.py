"""The examples, each as a whole federation in this process."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.apps import App, load_app
from broker_fl.interfaces import LearnerContext
from broker_fl.jobfile import read_job
from broker_fl.model import Model
from broker_fl.simulation import Federation
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.protocols import Synchronous

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _search_path() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


def federate(app: App, *, num_learners: int, rounds: int, **parameters: int) -> Model:
    contexts = [
        LearnerContext(learner=f"learner-{i}", index=i, count=num_learners) for i in range(num_learners)
    ]
    spec = JobSpec(
        protocol=Synchronous(min_learners=num_learners),
        termination=Termination(rounds=rounds),
        parameters={"seed": 0, **parameters},
        evaluate=False,
    )
    with Federation({context.learner: app.make(context) for context in contexts}) as federation:
        job = federation.submit(spec, app.initial_model())
        job.wait()
        return job.model()


def test_ten_learners_reach_what_central_training_reaches_and_one_alone_does_not() -> None:
    app = load_app(f"{EXAMPLES / 'digits.py'}:make_learner")
    accuracy = {
        "federated": app.module.test_metrics(federate(app, num_learners=10, rounds=20))["accuracy"],
        "central": app.module.test_metrics(app.module.central_training())["accuracy"],
        "alone": np.mean([app.module.test_metrics(app.module.alone(i))["accuracy"] for i in range(10)]),
    }
    assert accuracy["federated"] >= 0.95
    assert accuracy["federated"] >= accuracy["central"] - 0.02
    assert accuracy["federated"] >= accuracy["alone"] + 0.2


@pytest.mark.parametrize("name", ["digits_torch", "digits_keras"])
def test_a_network_with_batch_normalisation_learns_in_a_federation(name: str) -> None:
    app = load_app(f"{EXAMPLES / name}.py:make_learner")
    start = app.initial_model()
    model = federate(app, num_learners=3, rounds=4, epochs=3)
    moved = [key for key in start if not np.array_equal(model[key], start[key])]
    assert len(moved) == len(start)  # running statistics included
    assert app.module.test_metrics(start)["accuracy"] < 0.3
    assert app.module.test_metrics(model)["accuracy"] > 0.9


def test_every_digit_is_with_one_learner_and_none_of_the_held_out_with_any() -> None:
    data = load_app(f"{EXAMPLES / 'digits.py'}:make_learner").module
    train, test = data.load()
    parts = [data.part(index, 10) for index in range(10)]
    assert sum(len(part.digits) for part in parts) == len(train.digits) == 1437
    assert len(test.digits) == 360
    assert min(np.bincount(test.digits)) >= 34
    held_out = {image.tobytes() for image in test.images}
    assert not any(image.tobytes() in held_out for part in parts for image in part.images)


def test_sites_in_processes_of_their_own_have_data_of_their_own() -> None:
    app = load_app(f"{EXAMPLES / 'digits.py'}:make_learner")
    sites = [app.make(LearnerContext(learner=f"site-{number}")) for number in (1, 2)]
    first, second = (set(map(bytes, site.examples.images)) for site in sites)  # type: ignore[attr-defined]
    assert not first & second


def test_the_job_file_is_valid_and_its_app_loads() -> None:
    job = read_job(EXAMPLES / "job.toml")
    assert job.app is not None
    assert load_app(job.app).initial_model()["output.bias"].shape == (10,)


def test_the_learner_and_its_test_in_the_documentation_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "writing-a-learner.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_app.py").write_text(blocks[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    program: dict[str, Any] = {}
    exec(blocks[-1], program)
    program["test_my_learner_learns"]()
    model = federate(load_app("my_app.py:make_learner"), num_learners=3, rounds=20, epochs=2)
    assert model["a"].item() == pytest.approx(3, abs=0.1)
    assert model["b"].item() == pytest.approx(1, abs=0.1)


def test_the_page_on_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(program, "docs/python.md", "exec"), {"__name__": "docs_python"})
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("done 5 rounds")
    assert told[2] == "10"
    assert len(told) == 3 + 20
