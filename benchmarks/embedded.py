"""Rounds of the embedded federation, from a process's first import on, as the peers' scripts do it."""

from __future__ import annotations

import time

BEGAN_S = time.time()

from dataclasses import asdict  # noqa: E402

from benchmarks import processes  # noqa: E402
from benchmarks.jobs import read_rounds, run_job  # noqa: E402
from benchmarks.peers.rounds import constant_of, parser_of_rounds, write_result  # noqa: E402
from broker_fl.simulation import Federation  # noqa: E402
from broker_fl.wire.events import VersionCommitted  # noqa: E402


def main() -> None:
    """Measure one cell."""
    options = parser_of_rounds(__doc__).parse_args()
    processes.begin()
    learners = {f"learner-{i}": processes.AddConstant(constant_of(i)) for i in range(options.learners)}
    with Federation(learners) as federation:
        events = run_job(federation.driver, options.learners, options.parameters, options.rounds)
    first = next(event for event in events if isinstance(event, VersionCommitted))
    result = {
        "startup_s": first.time_s - BEGAN_S,
        "rounds": [asdict(one) for one in read_rounds(events)],
        "peak_memory_bytes": {"process": processes.peak_memory_bytes()},
    }
    write_result(options.out, result, ("numpy",))


if __name__ == "__main__":
    main()
