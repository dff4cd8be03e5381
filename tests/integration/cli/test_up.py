"""``broker-fl up``: a cluster in a folder."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_fl.model import Model
from broker_fl.workers.servers import rabbitmq_available, redis_available
from tests.integration.cli.apps import APP, ROOT, write_own_rule
from tests.integration.shell import Shell, command_lines

UP_TIMEOUT_S = 200.0
"""`up` starts two servers and, in processes of their own, an app that imports scikit-learn: 15 s of two idle
cores, a minute and more of busy ones. What it does not find in time it says itself.
"""


@pytest.fixture
def cluster(shell: Shell) -> Iterator[Path]:
    if not (rabbitmq_available() and redis_available()):
        pytest.skip("rabbitmq-server and redis-server are not installed")
    shell.timeout_s = UP_TIMEOUT_S
    yield shell.folder / ".cluster"
    shell.run("down")


def test_up_runs_a_job_and_down_ends_what_it_started(shell: Shell, cluster: Path) -> None:
    """By the words that README.md and `up` itself give, on the example that is the default."""
    shown = shell.run("up", "--learners", "3")
    settings = cluster / "broker-fl.toml"
    assert (settings.stat().st_mode & 0o777, cluster.stat().st_mode & 0o777) == (0o600, 0o700)
    password = settings.read_text("utf-8").partition("broker-fl:")[2].partition("@")[0]
    assert password
    assert password not in shown + shell.stderr
    logs = "".join(path.read_text("utf-8") for path in cluster.glob("*.out"))
    assert password not in "".join(line for _, line in command_lines()) + logs

    clean = {f"BROKER_FL_{name}": "" for name in ("BROKER", "STORE", "FEDERATION")}
    example = str(ROOT / "examples" / "job.toml")
    shell.run("--config", str(settings), "submit", example, "--watch", **clean)  # type: ignore[arg-type]
    assert shell.run("status").count("learner-") >= 3
    assert "run already" in shell.refusal("up", code=2)

    shell.run("down")
    assert shell.run("status") == "nothing runs in .cluster\n"
    shell.run("down", "--delete")
    assert not cluster.exists()


def test_up_gives_the_controller_the_rules_of_its_app(shell: Shell, cluster: Path) -> None:
    write_own_rule(shell)
    shell.run("up", "--learners", "2", "--app", "app.py")
    clean = {f"BROKER_FL_{name}": "" for name in ("BROKER", "STORE", "FEDERATION")}
    settings = ["--config", str(cluster / "broker-fl.toml")]
    done = shell.run(*settings, "submit", "job.toml", "--watch", **clean)  # type: ignore[arg-type]
    shell.run(*settings, "models", "export", done.split()[0], "--out", "final.safetensors", **clean)  # type: ignore[arg-type]
    assert Model.load(shell.folder / "final.safetensors")["w"].tolist() == pytest.approx([2.4] * 3)


def test_up_that_fails_half_way_leaves_nothing(shell: Shell, cluster: Path) -> None:
    (shell.folder / "app.py").write_text(APP.replace("return Adder()", "raise OSError('no disk')"), "utf-8")
    told = shell.refusal("up", "--learners", "2", "--app", "app.py", code=2)
    assert "ended while it started" in told
    assert "no disk" in told
    assert shell.run("status") == "nothing runs in .cluster\n"


def test_down_ends_no_process_that_reused_a_number(shell: Shell, cluster: Path) -> None:
    cluster.mkdir()
    with subprocess.Popen(["sleep", "600"]) as other:
        (cluster / "learner-0.pid").write_text(json.dumps({"pid": other.pid, "born": "1"}), "utf-8")
        shell.run("down")
        assert other.poll() is None
        other.kill()
