"""One measurement of Flower: ``python -m benchmarks.peers.flower``, by the Python of its environment."""

from __future__ import annotations

import time

BEGAN_S = time.perf_counter()

import argparse  # noqa: E402
from contextlib import ExitStack  # noqa: E402

from benchmarks.peers.flower import DEFAULT_POLL_S, LAYOUTS  # noqa: E402
from benchmarks.peers.flower.app import TimedRounds, ask_again_after, be_quiet, train  # noqa: E402
from benchmarks.peers.flower.clients import clients  # noqa: E402
from benchmarks.peers.flower.link import grid_of, superlink, wait_for_nodes  # noqa: E402
from benchmarks.peers.rounds import constant_of, parser_of_rounds, write_result  # noqa: E402


def main() -> None:
    """Measure one cell."""
    parser = parser_of_rounds(__doc__)
    parser.add_argument("engine", choices=("deployment", "simulation"))
    parser.add_argument("--poll-s", type=float, default=DEFAULT_POLL_S)
    parser.add_argument("--layout", choices=LAYOUTS, default="one")
    parser.add_argument("--cpus", type=float, default=1.0, help="that Ray reserves for a client")
    options = parser.parse_args()
    be_quiet()
    measure = measure_deployment if options.engine == "deployment" else measure_simulation
    write_result(options.out, measure(options), ("flwr", "ray", "numpy", "protobuf", "uvicorn", "fastapi"))


def measure_deployment(options: argparse.Namespace) -> dict[str, object]:
    """SuperLink, ServerApp and clients, over HTTP on this machine."""
    ask_again_after(options.poll_s)
    with ExitStack() as stack:
        started = stack.enter_context(superlink(options.layout))
        stack.enter_context(clients(options, started.address))
        grid = stack.enter_context(grid_of(started, options.poll_s))
        wait_for_nodes(grid, options.learners)
        rounds = TimedRounds(options, BEGAN_S)
        rounds.run(grid)
    return rounds.clock.result()


def measure_simulation(options: argparse.Namespace) -> dict[str, object]:
    """``run_simulation`` with its Ray backend; Ray keeps one actor for each ``--cpus`` of the machine."""
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    rounds = TimedRounds(options, BEGAN_S)
    server_app, client_app = ServerApp(), ClientApp()

    @server_app.main()  # type: ignore[untyped-decorator,unused-ignore]
    def run_server(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower calls it so
        wait_for_nodes(grid, options.learners)
        rounds.run(grid)

    @client_app.train()  # type: ignore[untyped-decorator,unused-ignore]
    def answer(message: Message, context: Context) -> Message:
        return train(message, constant_of(int(context.node_config["partition-id"])))

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=options.learners,
        backend_config={"client_resources": {"num_cpus": options.cpus, "num_gpus": 0.0}},
    )
    return rounds.clock.result()


if __name__ == "__main__":
    main()
