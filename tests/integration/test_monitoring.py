"""What daemons tell of themselves: metrics, health, logs; of a federation of real processes."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from broker_fl import connect
from broker_fl.model import Model
from broker_fl.wire.job import JobSpec
from broker_fl.workers.servers import RabbitMQNode
from tests.integration.daemons import APP, DEADLINE_S, Daemon, started, until
from tests.servers import provision

NUM_ROUNDS = 3
MONITORING = Path(__file__).parents[2] / "compose" / "monitoring"


@dataclass
class Federation:
    """Two learners, a controller and its standby, after a job whose second learner sends NaN."""

    controller: Daemon
    standby: Daemon
    learners: list[Daemon]
    job: str
    secret: str


@pytest.fixture(scope="module")
def watched(
    rabbitmq: provision.Broker, server_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "app.py").write_text(APP)
    name = f"test-{secrets.token_hex(6)}"
    # The Redis that tests share is wiped after each that uses it; this federation lives through several.
    with provision.private_redis(server_root / "redis-watched") as redis, rabbitmq.vhost(name) as url:
        environment = {
            "BROKER_FL_BROKER": url,
            "BROKER_FL_STORE": redis.url,
            "BROKER_FL_FEDERATION": name,
            "BROKER_FL_LOG_FORMAT": "json",
            "BROKER_FL_METRICS_PORT": "0",
        }
        with started(folder, environment) as start:
            yield _after_a_job(start, url, name)


def _after_a_job(start: Callable[..., Daemon], url: str, federation: str) -> Federation:
    import numpy as np

    # Nobody is lost, reminded or fenced because this machine is busy: that is not what is counted here.
    controller = start("controller", "controller", "--heartbeat", "30", "--lease", "300")
    until(controller.is_ready)
    standby = start("standby", "controller", "--heartbeat", "30")
    learners = [start(one, "learner", "app.py:make_learner", "--id", one) for one in ("site-0", "site-1")]
    spec = JobSpec.model_validate(
        {
            "protocol": {"min_learners": 2, "quorum": 0.5},
            "termination": {"rounds": NUM_ROUNDS},
            "parameters": {"poison": True},
        }
    )
    with connect(url, federation, timeout_s=DEADLINE_S) as driver:
        job = driver.submit(spec, Model.of({"w": np.zeros(1000, "f4")}))
        job.wait()
    until(standby.is_ready)
    until(lambda: controller.samples()['broker_fl_jobs_finished_total{state="done"}'])
    return Federation(controller, standby, learners, job.id, url.rpartition("@")[0].rpartition(":")[2])


def settled(daemon: Daemon, expected: Mapping[str, float]) -> dict[str, float]:
    """Its metrics, once these have these values: queues are read, and tasks counted, a moment later."""

    def differing() -> dict[str, float | None]:
        samples = daemon.samples()
        return {name: samples.get(name) for name, value in expected.items() if samples.get(name) != value}

    until(lambda: not differing(), differing)
    return daemon.samples()


def test_the_controller_counts_what_happened(watched: Federation) -> None:
    later = {"broker_fl_learners": 2, 'broker_fl_jobs{phase="ended"}': 1}
    samples = settled(watched.controller, later | {'broker_fl_queue_messages{queue="inbox"}': 0})
    assert samples["broker_fl_rounds_total"] == NUM_ROUNDS
    assert samples["broker_fl_versions_committed_total"] == NUM_ROUNDS
    assert samples["broker_fl_round_seconds_count"] == NUM_ROUNDS
    assert samples['broker_fl_commit_seconds_count{part="store"}'] == NUM_ROUNDS
    assert samples['broker_fl_updates_total{outcome="accepted",reason=""}'] == NUM_ROUNDS
    assert samples['broker_fl_updates_total{outcome="refused",reason="update"}'] == NUM_ROUNDS
    assert samples['broker_fl_updates_total{outcome="refused",reason="unreadable"}'] == 0, "counted once"
    assert samples['broker_fl_messages_refused_total{source="inbox"}'] == NUM_ROUNDS
    assert samples["broker_fl_fold_seconds_count"] == NUM_ROUNDS
    assert samples["broker_fl_update_bytes_total"] == NUM_ROUNDS * 4000
    assert samples["broker_fl_received_bytes_total"] > NUM_ROUNDS * 2 * 4000
    assert samples["broker_fl_sent_bytes_total"] > NUM_ROUNDS * 4000
    assert samples["broker_fl_lease_held"] == 1
    assert samples["broker_fl_lease_epoch"] == 1
    assert samples["broker_fl_store_available"] == 1
    assert samples["process_resident_memory_bytes"] > 1 << 20


def test_a_standby_is_ready_and_holds_nothing(watched: Federation) -> None:
    samples = watched.standby.samples()
    assert samples["broker_fl_lease_held"] == 0
    assert samples["broker_fl_lease_epoch"] == 0
    assert samples["broker_fl_broker_connected"] == 1
    assert watched.standby.page("/healthz") == (200, "ok\n")
    assert watched.standby.page("/readyz") == (200, "ok\n")


def test_learners_count_their_work(watched: Federation) -> None:
    for learner in watched.learners:
        # All rounds, and the evaluation of the last version.
        finished = {'broker_fl_work_seconds_count{outcome="finished"}': NUM_ROUNDS + 1}
        samples = settled(learner, finished | {'broker_fl_queue_messages{queue="mailbox"}': 0})
        assert samples["broker_fl_receive_seconds_count"] == NUM_ROUNDS + 1
        assert samples["broker_fl_sent_bytes_total"] > NUM_ROUNDS * 4000
        assert samples["broker_fl_welcomed"] == 1


def test_no_name_of_a_learner_or_job_is_a_label(watched: Federation) -> None:
    for daemon in (watched.controller, *watched.learners):
        text = daemon.page("/metrics")[1]
        assert "site-" not in text
        assert watched.job not in text


def _expressions() -> list[str]:
    """All that the dashboard and the alert rules ask of Prometheus, the dashboard's variables filled in."""
    dashboard = json.loads((MONITORING / "grafana/dashboards/broker-fl.json").read_text())
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return [one.replace("$__rate_interval", "5m").replace("$federation", ".*") for one in asked]


def test_the_dashboard_and_the_alerts_ask_for_what_daemons_have(watched: Federation) -> None:
    names = set(re.findall(r"\b(?:broker_fl|process)_\w+", " ".join(_expressions())))
    assert len(names) > 25
    has = {
        sample.partition("{")[0]
        for daemon in (watched.controller, watched.learners[0])
        for sample in daemon.samples()
    }
    assert names - has == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (tests/servers/provide.sh)")
def test_prometheus_takes_its_configuration_rules_and_questions(tmp_path: Path) -> None:
    def promtool(*words: str | Path) -> None:
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    promtool("check", "config", MONITORING / "prometheus.yaml")  # with the rules
    promtool("test", "rules", Path(__file__).parents[1] / "compose" / "alerts-test.yaml")
    rules = [{"record": f"asked:{n}", "expr": one} for n, one in enumerate(_expressions())]
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "asked.yaml")


def test_panels_of_the_dashboard_do_not_lie_on_one_another() -> None:
    panels = json.loads((MONITORING / "grafana/dashboards/broker-fl.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24  # Grafana's columns
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_pages_that_are_not_there(watched: Federation) -> None:
    status, text = watched.controller.page("/")
    assert status == 404
    assert "/metrics" in text


def test_every_line_says_what_it_is_about(watched: Federation) -> None:
    said = watched.controller.lines + [line for one in watched.learners for line in one.lines]
    assert {"time", "level", "logger", "message", "federation"} <= set.intersection(*map(set, said))
    about = {"job": watched.job, "learner": "site-1"}
    refused = [line for line in watched.controller.lines if "refused a message" in line["message"]]
    assert [line["round"] for line in refused] == list(range(NUM_ROUNDS))
    assert all(about.items() <= line.items() for line in refused)
    # What a learner's own code logs says it, too.
    trained = [line for line in watched.learners[1].lines if line["logger"] == "app"]
    assert [line["round"] for line in trained] == list(range(NUM_ROUNDS))
    assert all(about.items() <= line.items() for line in trained)


def test_no_line_has_the_password(watched: Federation) -> None:
    assert len(watched.secret) >= 8
    for daemon in (watched.controller, watched.standby, *watched.learners):
        assert daemon.said
        assert watched.secret not in daemon.said


def test_not_ready_while_the_broker_is_away_and_blocked_time_is_counted(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, redis_url: str, federation: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    environment = {"BROKER_FL_BROKER": private_amqp_url, "BROKER_FL_STORE": redis_url}
    options = ["--federation", federation, "--metrics-port", "0", "--heartbeat", "0.5"]
    with started(tmp_path, environment) as start:
        controller = start("controller", "controller", *options)
        learner = start("learner", "learner", "app.py", "--id", "site", *options[:4])
        until(controller.is_ready)
        # It has joined; from now on it publishes twice a second.
        until(lambda: learner.samples().get("broker_fl_welcomed"))
        private_rabbitmq.control("set_vm_memory_high_watermark", "absolute", "1MB")
        until(lambda: learner.samples()["broker_fl_broker_blocked"] == 1)
        private_rabbitmq.control("set_vm_memory_high_watermark", "0.6")
        until(lambda: learner.samples()["broker_fl_broker_blocked"] == 0)
        assert learner.samples()["broker_fl_broker_blocked_seconds_total"] > 0
        assert learner.samples()["broker_fl_reconnects_total"] == 0

        private_rabbitmq.kill()
        away = (503, "the broker is not connected\n")
        until(lambda: controller.page("/readyz") == away, lambda: controller.page("/readyz"))
        assert controller.page("/healthz") == (200, "ok\n")  # to start it anew would not help
        assert controller.samples()["broker_fl_broker_connected"] == 0
        private_rabbitmq.start()
        until(controller.is_ready)
        until(lambda: controller.samples()["broker_fl_reconnects_total"] == 2)


def test_systemd_is_told(amqp_url: str, redis_url: str, federation: str, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    environment = {
        "BROKER_FL_BROKER": amqp_url,
        "BROKER_FL_STORE": redis_url,
        "BROKER_FL_FEDERATION": federation,
        "NOTIFY_SOCKET": str(address),
        "WATCHDOG_USEC": "3000000",
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, started(tmp_path, environment) as start:
        systemd.bind(str(address))
        systemd.settimeout(DEADLINE_S)
        controller = start("controller", "controller")
        assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100) == b"WATCHDOG=1"
        assert systemd.recv(100) == b"WATCHDOG=1"
        controller.process.terminate()
        while (told := systemd.recv(100)) == b"WATCHDOG=1":
            pass
        assert told == b"STOPPING=1"
        assert controller.process.wait(DEADLINE_S) == 0


def test_a_port_that_is_taken_is_a_wrong_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "broker_fl.cli", "controller", "--metrics-port", port],
            cwd=tmp_path,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 2
    assert f"Error: metrics cannot be served at 127.0.0.1:{port}" in done.stderr
    assert "--metrics-port" in done.stderr


def test_every_metric_is_on_the_page_of_operations(watched: Federation) -> None:
    page = (MONITORING.parents[1] / "docs" / "operations.md").read_text()
    text = "".join(one.page("/metrics")[1] for one in (watched.controller, watched.learners[0]))
    kinds = dict(re.findall(r"^# TYPE broker_fl_(\w+) (\w+)$", text, re.MULTILINE))
    # prometheus_client tells beside each counter and histogram when it was made.
    names = {name for name in kinds if not name.endswith("_created")}
    assert len(names) > 35
    assert {name for name in names if f"`{name}`" not in page} == set()
