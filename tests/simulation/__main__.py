"""``python -m tests.simulation``: play many seeds, or one with its whole history."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.many import play_many
from tests.simulation.scenario import scenario
from tests.simulation.world import replay

REPORT_EVERY = 1_000


def main() -> int:
    """The exit code: 1 if a seed found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many are played")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this one only, and print all that happened")
    parser.add_argument("--processes", type=int, help="default: one for each processor")
    given = parser.parse_args()
    if given.seed is not None:
        return _tell(given.seed)
    return _play(range(given.first, given.first + given.seeds), given.processes)


def _tell(seed: int) -> int:
    print(f"seed {seed}: {scenario(seed)}")
    history, violation = replay(seed)
    print("\n".join(history))
    print(violation or "nothing was found")
    return 1 if violation else 0


def _play(seeds: range, processes: int | None) -> int:
    began, failed = time.monotonic(), []
    ends, virtual_s, steps, count = Counter[str](), 0.0, 0, 0
    for played in play_many(seeds, processes=processes):
        count += 1
        virtual_s, steps = virtual_s + played.virtual_s, steps + played.num_steps
        ends.update(outcome.partition(":")[0] for outcome in played.outcomes)
        if played.violation:
            failed.append(played.seed)
            print(
                f"{played.violation}\n  replay: python -m tests.simulation --seed {played.seed}", flush=True
            )
        if count % REPORT_EVERY == 0:
            print(f"{count} seeds, {time.monotonic() - began:.0f} s, {len(failed)} failed", flush=True)
    print(
        f"{count} seeds in {time.monotonic() - began:.0f} s: {steps} steps, {virtual_s / 3600:.0f} hours of "
        f"the federations' time; jobs ended as {dict(ends)}; {len(failed)} failed: {sorted(failed)[:99]}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
