"""What the figures depend on: the machine, how busy it is, and the versions of everything."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

PACKAGES = ("pika", "redis", "numpy", "numexpr", "msgpack", "pydantic")
BANDWIDTH_BYTES = 256_000_000
"""Read in each pass, by each thread: far more than any cache holds."""
BUSY_SAMPLE_S = 1.0
KERNEL_THREADS = 2
"""The process that all of the kernel's threads come of."""
BUSY_SHARE = 0.1
"""Above it, figures are not worth keeping."""
Process = tuple[int, int, int, int]
"""When it began, its parent, its number, and its ticks, with those of the children that it has collected."""
Ticks = dict[tuple[int, int], int]
"""Of processes, by when they began and their number."""
STOLEN = 7
"""Among the kernel's times: what the host gave to others than this machine."""


def facts(*, quick: bool = False) -> dict[str, str]:
    """Of this machine, as text for the page; with ``quick``, what takes no time to find."""
    found = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{memory_bytes('MemTotal') / 1e9:.0f} GB",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
    if not quick:
        found |= {"servers": ", ".join(_server_versions()), "memory bandwidth": _bandwidth()}
    return found


def commit() -> str:
    """Of the code that measures and is measured; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
        places = ["broker_fl", "benchmarks", ":!benchmarks/results"]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *places], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip() + (" with changes" if changed else "")


def busy_share(seconds: float = BUSY_SAMPLE_S) -> float:
    """Of the CPU time of all cores, that which others use while we sleep; 0 where there is no /proc."""
    try:
        before = _cpu_times()
        time.sleep(seconds)
        after = _cpu_times()
    except OSError:
        return 0.0
    total = sum(after) - sum(before)
    idle = after[3] + after[4] - before[3] - before[4]
    return max(0.0, 1 - idle / total) if total else 0.0


class OthersShare:
    """How busy others are from here on: all processes but this one and its descendants, and what the host
    takes away.

    Theirs is what is counted, not what remains without ours: of a child whose parent ignores that it ends, as
    Ray does, nobody is told what it worked. Interrupts are left out, and the kernel's own threads, which
    write our servers' files.
    """

    def __init__(self) -> None:
        self._before = counted()

    def so_far(self) -> float:
        """Of the CPU time of all cores; 0 where there is no /proc."""
        return others_share(self._before, counted())


class Counted(NamedTuple):
    """Ticks of all cores."""

    total: int
    """Idle or not."""
    stolen: int
    others: Ticks


def counted() -> Counted:
    """So far; nothing where there is no /proc."""
    try:
        times = _cpu_times()
        return Counted(sum(times), times[STOLEN], others_ticks(_processes(), os.getpid()))
    except OSError:
        return Counted(0, 0, {})


def others_share(before: Counted, after: Counted) -> float:
    """Of what the cores could do in between, what others had of it: at most 1."""
    worked = sum(ticks - before.others.get(process, 0) for process, ticks in after.others.items())
    total = after.total - before.total
    return min(1.0, (worked + after.stolen - before.stolen) / total) if total > 0 else 0.0


def others_ticks(processes: Iterable[Process], own: int) -> Ticks:
    """Of those that are neither ``own`` nor came of it, by when they began and their number."""
    ours = {own, KERNEL_THREADS}
    others = {}
    for began, parent, pid, worked in sorted(processes):  # whoever came of another began later
        if pid in ours or parent in ours:
            ours.add(pid)
        else:
            others[began, pid] = worked
    return others


def _processes() -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (
                (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            )
            yield int(fields[19]), int(fields[1]), int(folder.name), sum(map(int, fields[11:15]))


def memory_bytes(name: str) -> int:
    """``MemTotal`` or ``MemAvailable``; without /proc, all there is."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _cpu_times() -> list[int]:
    """User, nice, system, idle, waiting for disks, …, in ticks."""
    line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    return [int(ticks) for ticks in line.split()[1:9]]


def cpu_model() -> str:
    """Its maker's name for it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _server_versions() -> list[str]:
    commands = {"RabbitMQ": ["rabbitmqctl", "version"], "Redis": ["redis-server", "--version"]}
    found = []
    for name, command in commands.items():
        path = os.environ["PATH"] + ":/usr/sbin:/usr/lib/rabbitmq/bin:/usr/local/sbin:/opt/homebrew/sbin"
        if (program := shutil.which(command[0], path=path)) is None:
            continue
        said = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True).stdout
        number = re.search(r"\d+\.\d+(\.\d+)?", said)
        found.append(f"{name} {number[0] if number else '(version unknown)'}")
    return found or ["none"]


def read_bandwidth() -> float:
    """Bytes a second that all cores together read: a dot product of float32 by BLAS on each, out of cache."""
    cores = os.cpu_count() or 1
    arrays = [np.ones(BANDWIDTH_BYTES // 4, np.float32) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        together_s = _best_s(lambda: list(pool.map(lambda array: float(np.dot(array, array)), arrays)))
    return cores * BANDWIDTH_BYTES / together_s


def copy_bandwidth() -> float:
    """Bytes a second that one core copies."""
    source = np.ones(BANDWIDTH_BYTES // 4, np.float32)
    target = np.empty_like(source)
    return BANDWIDTH_BYTES / _best_s(lambda: np.copyto(target, source))


def _bandwidth() -> str:
    return (
        f"{read_bandwidth() / 1e9:.1f} GB/s read by all cores (BLAS dot product), "
        f"{copy_bandwidth() / 1e9:.1f} GB/s copied by one (numpy)"
    )


def _best_s(work: Callable[[], object], repetitions: int = 5) -> float:
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
