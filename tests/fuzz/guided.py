"""One decoder under atheris: ``python -m tests.fuzz.guided TARGET FOUND INPUTS SEED``.

Inputs that reach new code are kept in ``FOUND/TARGET`` and go on from there; one that fails is written beside
them. Half of the changes are libFuzzer's own, half those of ``mutation.py``, which keep msgpack whole.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

_READING = ("wire", "model", "jobfile", "identity", "security", "transports")
with atheris.instrument_imports(include=[f"broker_fl.{name}" for name in _READING]):
    from tests.fuzz.mutation import mutated
    from tests.fuzz.targets import IS_MSGPACK, TARGETS, kept


def main() -> None:
    """Ends the process: with 0, or with libFuzzer's code if an input found something."""
    name, found, inputs, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    target, folder = TARGETS[name], found / name
    folder.mkdir(parents=True, exist_ok=True)
    pool = [*target.seeds(), *kept(name)]
    for number, data in enumerate(pool):
        (folder / f"seed-{number}").write_bytes(data)

    def run(data: bytes) -> None:
        target.run(data)

    def change(data: bytes, max_size: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return mutated(data, pool, draw, is_msgpack=name in IS_MSGPACK)[:max_size]

    options = ["-max_len=8192", f"-runs={inputs}", f"-seed={int(seed) + 1}", "-rss_limit_mb=2048"]
    options += ["-timeout=10", "-print_final_stats=1", f"-artifact_prefix={folder}/", str(folder)]
    atheris.Setup([sys.argv[0], *options], run, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
