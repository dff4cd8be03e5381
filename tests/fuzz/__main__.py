"""``python -m tests.fuzz --inputs 1000000``: so many inputs, shared out among the decoders.

``--record`` keeps what was run in ``record.json`` and in ``docs/faults.md``. ``--guided`` lets atheris choose
inputs by the code that they reach (extra ``fuzz``). What is found is written to ``--found``; put it into
``corpus`` once it is mended.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import IS_MSGPACK, TARGETS, kept
from tests.records import Record, Run, commit, today

RECORD = Record(
    Path(__file__).parent / "record.json",
    "inputs",
    {
        "decoder": lambda run: f"`{run['decoder']}`",
        "date": lambda run: run["date"],
        "commit": lambda run: run["commit"],
        "seed": lambda run: run["seed"],
        "inputs": lambda run: f"{run['inputs']:,}",
        "taken": lambda run: f"{run['taken']:,}",
        "seconds of CPU": lambda run: run["cpu_s"],
        "slowest": lambda run: f"{run['slowest_ms']} ms",
        "failures": lambda run: run["failed"],
    },
)
ROOM_BYTES = 1 << 30
"""Address space beyond what is in use when the inputs begin: one that takes more fails with MemoryError."""
SLOW_S = 2.0


def main() -> int:
    """The exit code: 1 if an input found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many, over all decoders")
    parser.add_argument("--seed", type=int, default=0, help="other inputs for another seed")
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="only this decoder")
    parser.add_argument("--record", action="store_true", help="keep what was run")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="folder for what is found")
    given = parser.parse_args()
    names = given.only or list(TARGETS)
    each = -(-given.inputs // len(names))
    if given.guided:
        return max([_guided(name, each, given.seed, given.found) for name in names])
    _limit_memory()
    runs = []
    for name in names:
        runs.append(_play(name, each, given.seed, given.found))
        if given.record:
            _keep_run(runs[-1])
    return 1 if any(run["failed"] or run["slowest_ms"] > 1e3 * SLOW_S for run in runs) else 0


def _keep_run(run: Run) -> None:
    """In the place of the decoder's last one of no more inputs."""
    others = [
        one for one in RECORD.runs() if one["decoder"] != run["decoder"] or one["inputs"] > run["inputs"]
    ]
    RECORD.write(sorted([*others, run], key=lambda one: list(TARGETS).index(one["decoder"])))


def _limit_memory() -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM_BYTES, resource.RLIM_INFINITY))


def _play(name: str, inputs: int, seed: int, found: Path) -> Run:
    target, draw = TARGETS[name], random.Random(f"{seed}/{name}")
    pool = [*target.seeds(), *kept(name)]
    parts = [*pool, *target.words]
    began, taken, failed, slowest = time.process_time(), 0, 0, 0.0
    for _ in range(inputs):
        data = mutated(draw.choice(pool), parts, draw, is_msgpack=name in IS_MSGPACK)
        at = time.process_time()  # a machine that is busy with something else makes nothing slow
        try:
            taken += target.run(data)
        except Exception:  # noqa: BLE001 - what is looked for
            failed += 1
            if failed <= 3:
                _keep(name, data, found)
                traceback.print_exc()
        if (lasted := time.process_time() - at) > slowest:
            slowest = lasted
            if lasted > SLOW_S:
                _keep(f"{name}-slow", data, found)
    run = {
        "decoder": name,
        "date": today(),
        "commit": commit(),
        "seed": seed,
        "inputs": inputs,
        "taken": taken,
        "cpu_s": round(time.process_time() - began),
        "slowest_ms": round(1e3 * slowest),
        "failed": failed,
    }
    print(run, flush=True)
    return run


def _keep(name: str, data: bytes, found: Path) -> None:
    found.mkdir(parents=True, exist_ok=True)
    with (found / f"{name}.hex").open("a") as file:
        file.write(data.hex() + "\n")


def _guided(name: str, inputs: int, seed: int, found: Path) -> int:
    """One process for each decoder: libFuzzer ends its own."""
    found.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(found), str(inputs), str(seed)]
    return subprocess.run(command, check=False).returncode and 1


if __name__ == "__main__":
    sys.exit(main())
