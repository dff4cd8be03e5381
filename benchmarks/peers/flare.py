"""NVIDIA FLARE: its simulator, with its FedAvg and an executor that adds a constant.

The simulator runs each client in a process of its own where it is given as many threads as there are
clients; with fewer, processes are ended and started again for every task. Clients ask for work: how often
is an argument (``--poll-s``; FLARE's own is 2 s, and 0.5 s between two looks of the controller at its
tasks).
"""

from __future__ import annotations

import time

BEGAN_S = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.peers import Peer  # noqa: E402

PEER = Peer(
    name="flare",
    title="NVIDIA FLARE 2.9",
    packages=("nvflare==2.9.0", "numpy==2.4.6", "grpcio==1.85.1", "protobuf==7.36.2"),
    environment={},
)
DEFAULT_POLL_S = 2.0
DEFAULT_CHECK_S = 0.5


def main() -> None:
    """Measure one cell."""
    from benchmarks.peers.rounds import parser_of_rounds, write_result

    parser = parser_of_rounds(__doc__)
    parser.add_argument("--poll-s", type=float, default=DEFAULT_POLL_S)
    parser.add_argument("--check-s", type=float, default=DEFAULT_CHECK_S)
    options = parser.parse_args()
    write_result(options.out, measure(options), ("nvflare", "numpy"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run a job on the simulator; the controller writes what it measured."""
    from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = folder / "rounds.json"
        runner = SimulatorRunner(
            job_folder=str(_write_job(folder / "job", options, result)),
            workspace=str(folder / "workspace"),
            n_clients=options.learners,
            threads=options.learners,
            max_clients=options.learners,
            log_config="ERROR",
        )
        status = runner.run()
        if not result.exists():
            raise RuntimeError(f"the simulator ended with status {status}, and without a result")
        measured: dict[str, Any] = json.loads(result.read_text())
        return measured


def _write_job(folder: Path, options: argparse.Namespace, result: Path) -> Path:
    workflow = {
        "num_clients": options.learners,
        "num_rounds": options.rounds + 1,
        "task_check_period": options.check_s,
        "num_parameters": options.parameters,
        "began_s": BEGAN_S,
        "limit_s": options.limit_s,
        "least": options.least,
        "result": str(result),
    }
    app = "flare_app"
    server = {
        "format_version": 2,
        "server": {"heart_beat_timeout": 600, "task_request_interval": options.poll_s},
        "workflows": [{"id": "fedavg", "path": f"{app}.TimedFedAvg", "args": workflow}],
        "components": [],
    }
    executor = {"path": f"{app}.AddConstant", "args": {}}
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": executor}],
        "components": [],
    }
    meta = {
        "name": "rounds",
        "resource_spec": {},
        "min_clients": options.learners,
        "deploy_map": {"app": ["@ALL"]},
    }
    config = folder / "app" / "config"
    custom = folder / "app" / "custom"  # where a job brings code of its own, which is not on FLARE's list
    config.mkdir(parents=True)
    custom.mkdir()
    shutil.copy(Path(__file__).with_name("flare_app.py"), custom)
    (folder / "meta.json").write_text(json.dumps(meta))
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(client))
    return folder


if __name__ == "__main__":
    main()
