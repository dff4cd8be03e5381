"""``python -m tests.simulation``: play many seeds, or one with its whole history.

``--record`` keeps what was run in ``record.json`` and in ``docs/faults.md``, also of a run that is ended
early. A run that goes on where one of the same commit ended is added to it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.records import Record, Run, commit, today
from tests.simulation.many import Played, play_many
from tests.simulation.playing import replay
from tests.simulation.scenario import scenario

REPORT_EVERY = 1_000
RECORD = Record(
    Path(__file__).parent / "record.json",
    "seeds",
    {
        "date": lambda run: run["date"],
        "commit": lambda run: run["commit"],
        "seeds": lambda run: f"{run['first']:,} to {run['first'] + run['seeds'] - 1:,}",
        "steps": lambda run: f"{run['steps']:,}",
        "hours of the federations' time": lambda run: f"{run['virtual_s'] / 3600:,.0f}",
        "seconds of CPU": lambda run: f"{run['cpu_s']:,.0f}",
        "jobs ended as": lambda run: ", ".join(f"{end} {count:,}" for end, count in run["ends"].items()),
        "seeds that failed": lambda run: ", ".join(map(str, run["failed"])) or "none",
    },
)


def main() -> int:
    """The exit code: 1 if a seed found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many are played")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this one only, and print all that happened")
    parser.add_argument("--processes", type=int, help="default: one for each processor")
    parser.add_argument("--record", action="store_true", help="keep what was run, each 1,000 seeds")
    given = parser.parse_args()
    if given.seed is not None:
        return _tell(given.seed)
    return _play(given.first, given.seeds, given.processes, record=given.record)


def _tell(seed: int) -> int:
    print(f"seed {seed}: {scenario(seed)}")
    history, violation = replay(seed)
    print("\n".join(history))
    print(violation or "nothing was found")
    return 1 if violation else 0


class Tally:
    """What came of seeds that follow one another."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.failed: list[int] = []
        self._ends = Counter[str]()
        self._virtual_s, self._cpu_s, self._steps, self.count = 0.0, 0.0, 0, 0
        self._commit = commit()

    def add(self, played: Played) -> None:
        """The next one."""
        self.count += 1
        self._steps += played.num_steps
        self._virtual_s += played.virtual_s
        self._cpu_s += played.cpu_s
        self._ends.update(outcome.partition(":")[0] for outcome in played.outcomes)
        if played.violation:
            self.failed.append(played.seed)
            print(
                f"{played.violation}\n  replay: python -m tests.simulation --seed {played.seed}", flush=True
            )

    def run(self) -> Run:
        """As it is kept."""
        return {
            "date": today(),
            "commit": self._commit,
            "first": self.first,
            "seeds": self.count,
            "steps": self._steps,
            "virtual_s": round(self._virtual_s),
            "cpu_s": round(self._cpu_s),
            "ends": dict(sorted(self._ends.items())),
            "failed": sorted(self.failed),
        }


def joined(runs: list[Run], run: Run) -> list[Run]:
    """With a run that may go on where the last one ended."""
    last = runs[-1] if runs else None
    if last is None or last["commit"] != run["commit"] or last["first"] + last["seeds"] != run["first"]:
        return [*runs, run]
    whole = {name: last[name] + run[name] for name in ("seeds", "steps", "virtual_s", "cpu_s", "failed")}
    ends = Counter[str](last["ends"]) + Counter[str](run["ends"])
    return [*runs[:-1], {**last, **whole, "date": run["date"], "ends": dict(sorted(ends.items()))}]


def _play(first: int, seeds: int, processes: int | None, *, record: bool) -> int:
    began, failed, tally = time.monotonic(), 0, Tally(first)
    for count, played in enumerate(play_many(range(first, first + seeds), processes=processes), 1):
        tally.add(played)
        if count % REPORT_EVERY == 0 or count == seeds:
            failed += len(tally.failed)
            print(
                f"{count} seeds, {time.monotonic() - began:.0f} s, {failed} failed; {tally.run()}", flush=True
            )
            if record:
                RECORD.write(joined(RECORD.runs(), tally.run()))
            tally = Tally(first + count)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
