"""Daemons keep the blocks that chunks lie in."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
from broker_fl.workers.memory import keep_freed_blocks
if sys.argv[1] == "kept":
    assert keep_freed_blocks()
for _ in range(20):
    bytes(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    b"x" * (1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    run = [sys.executable, "-c", _FAULTS, how]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_blocks_of_a_megabyte_are_not_fetched_from_the_system_anew_each_time() -> None:
    assert page_faults("kept") < 1_000
