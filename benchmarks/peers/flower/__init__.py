"""Flower: its deployment engine, and its simulation on Ray.

The deployment engine is its SuperLink (HTTP API, state in memory), a ServerApp with its FedAvg on its grid,
and its own client library; the message that a SuperNode would hand on to the process of a ClientApp is
answered in the thread that fetched it, so neither the start of processes nor the way through them counts.
Who waits asks again after ``--poll-s``: Flower's own 3 s are constants in its code (``SuperNode`` and
``HttpGrid``), and so is the second after which an object that is still on its way is asked for again, which
is made as short as the poll. Clients return weights of their own: the SuperLink stores objects by content,
and skips an upload that it has already.
"""

from __future__ import annotations

from benchmarks.peers import Peer

PEER = Peer(
    name="flower",
    title="Flower 1.41",
    # 1.42 asks for a certifi that the package index does not have yet (November 2026).
    packages=(
        "flwr[simulation]==1.41.0",
        "ray==2.55.1",
        "numpy==2.4.6",
        "protobuf==6.33.6",
        "fastapi==0.138.2",
        "uvicorn==0.49.0",
        "uvloop==0.23.0",
        "httptools==0.9.0",
        "httpx==0.28.1",
        "certifi==2026.10.18",
    ),
    environment={
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    },
)
DEFAULT_POLL_S = 3.0
LAYOUTS = ("one", "several")
"""All in one process; or SuperLink, ServerApp and two processes of clients, as ours are laid out."""
