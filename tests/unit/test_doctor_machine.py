"""What the doctor makes of this machine."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable

import pytest

from broker_fl.doctor import Finding
from broker_fl.doctor_machine import check_machine
from tests.unit.cli.calling import call

Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Make packages look as if they were not installed, and all others as if they were."""

    def hide(*packages: str) -> None:
        def version(package: str) -> str:
            if package in packages:
                raise importlib.metadata.PackageNotFoundError(package)
            return "1.2.3"

        monkeypatch.setattr(importlib.metadata, "version", version)

    return hide


def wrong() -> list[Finding]:
    return [finding for finding in check_machine() if finding.level != "ok"]


def test_a_whole_machine_is_good_and_is_described(without: Without, monkeypatch: pytest.MonkeyPatch) -> None:
    without()
    monkeypatch.setattr(sys, "version_info", (3, 13, 1))
    assert not wrong()
    told = "\n".join(finding.what for finding in check_machine())
    for fact in (platform.python_version(), "numpy 1.2.3", "extra torch: torch 1.2.3", "matplotlib 1.2.3"):
        assert fact in told


def test_a_python_that_is_newer_than_the_tests_is_warned_of(
    without: Without, monkeypatch: pytest.MonkeyPatch
) -> None:
    without()
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    (found,) = wrong()
    assert found.level == "warning"
    assert "3.11 to 3.13" in found.advice


def test_a_damaged_installation_is_an_error(without: Without) -> None:
    without("numpy", "pika")
    found = next(finding for finding in wrong() if finding.level == "error")
    assert found.what == "not installed: numpy, pika"
    assert "pip install" in found.advice


@pytest.mark.parametrize(
    ("package", "extra"),
    [("torch", "torch"), ("tensorflow", "tensorflow"), ("tenseal", "he"), ("jinja2", "report")],
)
def test_an_extra_that_is_absent_is_no_fault_and_says_how_to_get_it(
    without: Without, package: str, extra: str
) -> None:
    without(package)
    (found,) = [finding for finding in check_machine() if package in finding.what]
    assert (found.level, found.sort) == ("ok", "absent")
    assert f"pip install 'broker-fl[{extra}]'" in found.what


def test_what_need_not_be_there_is_not_ticked_off(without: Without) -> None:
    without("torch")
    nobody = ("--broker", "amqp://127.0.0.1:1", "--store", "redis://127.0.0.1:1/0")
    done = call("doctor", *nobody)
    assert "  – extra torch is not installed" in done.stdout
    assert "  ✓ extra sklearn: " in done.stdout
    assert "redis://127.0.0.1:1/0 does not answer: nothing listens there" in done.stdout
    assert done.exit_code == 3, "as of all commands that miss a server"


def test_either_build_of_xgboost_will_do(without: Without) -> None:
    for hidden, told in (
        (["xgboost"], "extra xgboost: xgboost 1.2.3"),
        (
            ["xgboost", "xgboost-cpu"],
            "extra xgboost is not installed (xgboost): pip install 'broker-fl[xgboost]'",
        ),
    ):
        without(*hidden)
        assert any(finding.what.startswith(told) for finding in check_machine())
