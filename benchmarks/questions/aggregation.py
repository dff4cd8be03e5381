"""The weighted sum of updates that are in memory: ours, NumPy's, Flower's, FLARE's, and two in C++."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, ours, plain_sums
from benchmarks.cells import now, or_failed
from benchmarks.peers import PeerFailed
from benchmarks.peers.flare import PEER as FLARE
from benchmarks.peers.flower import PEER as FLOWER
from benchmarks.questions import Options, Question, Row
from benchmarks.tables import table, times, verdict
from broker_fl.aggregation import kernels
from broker_fl.aggregation.looks import Look
from broker_fl.aggregation.sums import HANDED_UPDATES, STAGED_BYTES, WeightedSum, handed_room
from broker_fl.model import Array, Model, ModelSpec
from broker_fl.wire.chunks import Assembly, Chunk, cut

SOURCE = Path(__file__).parents[1] / "peers" / "openmp.cpp"
NUM_UPDATES = 8
SHAPES = {
    "one tensor of 400 MB": (100_000_000, 1),
    "200 tensors, 40 MB": (10_000_000, 200),
    "100,000 tensors of 100": (10_000_000, 100_000),
    "20 tensors, 4 MB (in cache)": (1_000_000, 20),
}
QUICK_SHAPES = {"20 tensors": (100_000, 20)}
WAY_S = 10.0
"""After so long a way is not measured again, once it was counted."""
PEER_LIMIT_S = 15.0
PEER_TIMEOUT_S = 120.0
WANTED = 1.0
"""Times the speed of a fused, checked sum in C++, at least; what this project set out for."""
PIECE_BYTES = 1 << 20
"""As updates are sent by themselves."""
PAUSE_S = 0.02
"""Before each: OpenMP's threads spin a while after their work, and would take the cores from the next."""
OURS = "ours, update by update, checked"
TOGETHER = "ours, together, checked"
ARRIVED = "ours, together, looked at on arrival"
RECEIVED = "ours, putting pieces together"
LOOKED = "ours, putting pieces together, and looking"
WITH_LOOK = "ours, together, with the look on arrival"
BY_BROKER = "ours, as room allows, looked at on arrival"
SUM_ONLY = "ours, the sum alone"
NUMEXPR = "numexpr, update by update"
NUMEXPR_BLOCKS = "numexpr, blocks that stay in the cache"
NUMEXPR_ALL = "numexpr, all updates in one expression"
STREAMED = "C++ and OpenMP, update by update"
STREAMED_CHECKED = "C++ and OpenMP, update by update, checked"
BY_TENSOR = "C++ and OpenMP, tensor by tensor"
WITHIN_TENSORS = "C++ and OpenMP, tensor by tensor, each on all cores"
FUSED = "C++ and OpenMP, all updates in one pass"
FUSED_CHECKED = "C++ and OpenMP, all updates in one pass, checked"
NAMES = {
    OURS: "each update is checked (shapes, weight, every value finite, no overflow) and folded; then divided",
    TOGETHER: "checked one by one, in a pass that only reads; folded as many in a pass as may wait for it: "
    f"{HANDED_UPDATES} of large ones that were handed over within the process, as here; of a broker's as "
    f"many as {STAGED_BYTES >> 20} MiB hold, so that larger ones are folded one by one",
    ARRIVED: "as in the controller of an embedded federation: each piece of 1 MiB was looked at when it "
    "came, which is not in this row but in the next",
    WITH_LOOK: "the time of the row above, and that of the look: the difference of the last two rows, which "
    "use one core",
    BY_BROKER: "as in a controller with a broker, the look not in it either: updates wait within "
    f"{STAGED_BYTES >> 20} MiB only, larger ones are folded one by one",
    SUM_ONLY: "`kernels.add_scaled` without checks, into memory that is there",
    "NumPy": "`total += weight * update`, tensor by tensor, into memory that is there; one core",
    NUMEXPR: "`total + weight * update` in place, all tensors as one array; not checked",
    NUMEXPR_BLOCKS: f"the same in blocks of {plain_sums.BLOCK:,} elements, all updates in each, compiled "
    "once and called without a look-up (`numexpr.NumExpr`); not checked",
    NUMEXPR_ALL: f"a sum of {NUM_UPDATES} products; needs all updates in memory at once; not checked",
    "Flower": "its `aggregate`",
    "NVIDIA FLARE": "its in-time accumulator",
    BY_TENSOR: "the cores share the tensors out among them: MetisFL's design; not checked",
    WITHIN_TENSORS: "the other way to take them one by one; not checked",
    STREAMED: "all tensors as one array, as updates arrive; not checked",
    STREAMED_CHECKED: "each is looked at, then added: a refused one leaves the sum as it was, as in ours",
    FUSED: "needs all updates in memory at once; not checked",
    FUSED_CHECKED: "looked at in the pass that adds them: one bad value, and the whole sum is lost",
    RECEIVED: "pieces of 1 MiB: checksum, and copy to their place, on one core; no sum",
    LOOKED: "the same, each piece looked at while it is in the cache: what is checked of a sum above",
}

TEXT = """{num} float32 updates that are in memory become one weighted mean. GB/s are bytes of updates per
second: the median of the repetitions, with the least and the most in brackets, then the share of what the
machine reads in the same run (a sum on all cores in C++, or by NumPy without a compiler). The repetitions of
ours, NumPy's, numexpr's and those in C++ alternate; Flower's and FLARE's come right after them, in processes
of their own. The first of each is not counted.

{table}

{legend}
{missing}"""


def run(options: Options) -> Iterator[Row]:
    """Shape by shape."""
    for name, (parameters, tensors) in _shapes(options).items():
        if options.is_over:
            return
        repetitions = 2 if options.quick else options.rounds
        row: Row = {
            "key": f"{parameters}x{tensors}",
            "shape": name,
            **now(),
            "num_bytes": 4 * parameters * NUM_UPDATES,
        }
        yield {**row, **or_failed(_all, parameters, tensors, repetitions, options.quick)}


def _shapes(options: Options) -> dict[str, tuple[int, int]]:
    """Those with the parameters asked for, as UPDATESxPARAMETERS."""
    shapes = QUICK_SHAPES if options.quick else SHAPES
    if options.cells is None:
        return shapes
    found = {name: shape for name, shape in shapes.items() if (NUM_UPDATES, shape[0]) in options.cells}
    if not found:
        known = ", ".join(sorted({f"{NUM_UPDATES}x{parameters}" for parameters, _ in shapes.values()}))
        print(f"aggregation has no cells but {known}")
    return found


def _all(parameters: int, tensors: int, repetitions: int, quick: bool) -> dict[str, Any]:
    measured = ours.alone(_measure, parameters, tensors, repetitions)
    missing: dict[str, str] = measured.pop("missing")
    peers = []
    for title, peer in (("Flower", FLOWER), ("NVIDIA FLARE", FLARE)):
        try:
            measured[title] = _peer(peer, parameters, tensors, repetitions, quick=quick)
            peers.append(peer.title)
        except PeerFailed as error:
            missing[title] = str(error)
    return {"times_s": measured, "missing": missing, "peers": peers}


def _peer(peer: Any, parameters: int, tensors: int, repetitions: int, *, quick: bool) -> list[float]:
    if quick and not peer.is_there:
        raise PeerFailed("it is not installed, and --quick installs nothing")
    peer.set_up()
    numbers = {
        "parameters": parameters,
        "tensors": tensors,
        "updates": NUM_UPDATES,
        "repetitions": repetitions,
        "limit-s": PEER_LIMIT_S,
    }
    options = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    found = peer.run([peer.name, *options], PEER_TIMEOUT_S, module="benchmarks.peers.aggregate")
    return [float(seconds) for seconds in found["times_s"]]


def _measure(parameters: int, tensors: int, repetitions: int) -> dict[str, Any]:
    """In a process of its own."""
    size = parameters // tensors
    given = Model.of({f"t{index}": np.zeros(size, np.float32) for index in range(tensors)})
    updates = [given.copy() for _ in range(NUM_UPDATES)]
    for number, update in enumerate(updates):
        plain_sums.flat(update)[:] = number + 0.5
    weights = np.arange(1, NUM_UPDATES + 1, dtype=np.float32)
    expected = float((weights * (weights - 0.5)).sum() / weights.sum())
    magnitudes = [[kernels.magnitude(plain_sums.flat(update))] for update in updates]
    pieces = [list(cut(update.buffer, PIECE_BYTES)) for update in updates]
    total = given.copy()  # used again, as the C++ sums do and as ours recycles its own
    plain_sums.use_all_cores()
    ways: dict[str, Callable[[], float]] = {
        OURS: lambda: _ours(updates, weights),
        TOGETHER: lambda: _together(updates, weights, [None] * len(updates)),
        ARRIVED: lambda: _together(updates, weights, magnitudes),
        BY_BROKER: lambda: _together(updates, weights, magnitudes, STAGED_BYTES),
        SUM_ONLY: lambda: plain_sums.by_sum_only(total, updates, weights),
        "NumPy": lambda: plain_sums.by_numpy(total, updates, weights),
        NUMEXPR: lambda: plain_sums.by_numexpr(total, updates, weights),
        NUMEXPR_BLOCKS: lambda: plain_sums.by_numexpr_blocks(total, updates, weights),
        NUMEXPR_ALL: lambda: plain_sums.by_numexpr_all(total, updates, weights),
        RECEIVED: lambda: _received(pieces, None),
        LOOKED: lambda: _received(pieces, given.spec),
    }
    missing = {}
    try:
        ways |= _compiled(updates, weights, size)
    except (OSError, subprocess.CalledProcessError) as error:
        missing["C++"] = f"{error}"
        ways["read"] = lambda: sum(float(np.sum(plain_sums.flat(update))) for update in updates)
    times_s: dict[str, Any] = {name: [] for name in ways}
    for _ in range(repetitions + 1):
        for name, way in ways.items():
            if len(times_s[name]) > 1 and sum(times_s[name]) > WAY_S:
                continue
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            found = way()
            times_s[name].append(time.perf_counter() - began)
            assert name in (RECEIVED, LOOKED, "read") or abs(found - expected) < 1e-3 * expected, (
                name,
                found,
                expected,
            )
    return {**{name: found[1:] for name, found in times_s.items()}, "missing": missing}


def _ours(updates: Sequence[Model], weights: Array) -> float:
    total = WeightedSum(updates[0].spec)
    for update, weight in zip(updates, weights, strict=True):
        total.add(update, float(weight))
    return float(plain_sums.flat(total.mean())[-1])


def _together(
    updates: Sequence[Model],
    weights: Array,
    magnitudes: Sequence[list[float] | None],
    room: int | None = None,
) -> float:
    """``room`` in bytes; as for updates that were handed over if None."""
    total = WeightedSum(updates[0].spec)
    room = handed_room(total.spec) if room is None else room
    for update, weight, found in zip(updates, weights, magnitudes, strict=True):
        total.add(update, float(weight), magnitudes=found, room=room)
    return float(plain_sums.flat(total.mean())[-1])


def _received(updates: Sequence[Sequence[Chunk]], spec: ModelSpec | None) -> float:
    num_bytes = sum(len(chunk.payload) for chunk in updates[0])
    for chunks in updates:
        assembly, look = Assembly(num_bytes, PIECE_BYTES), Look(spec) if spec is not None else None
        for chunk in chunks:
            assembly.add(chunk.index, chunk.count, chunk.checksum, chunk.payload)
            if look is not None:
                start = chunk.index * PIECE_BYTES
                look.at(assembly.buffer, start, start + len(chunk.payload))
        assert look is None or look.magnitudes() is not None
    return 0.0


def _compiled(updates: Sequence[Model], weights: Array, size: int) -> dict[str, Callable[[], float]]:
    """The C++ sums, compiled once for this machine.

    Raises:
        OSError, CalledProcessError: there is no compiler, or it fails.
    """
    library = ctypes.CDLL(str(_library()))
    library.read.restype = ctypes.c_float
    flats = [plain_sums.flat(update) for update in updates]
    pointer = ctypes.POINTER(ctypes.c_float)
    pointers = (pointer * len(flats))(*[flat.ctypes.data_as(pointer) for flat in flats])
    num = ctypes.c_size_t(flats[0].size)
    ends = np.arange(size, flats[0].size + 1, size, dtype=np.uintp)

    total = np.zeros_like(flats[0])  # used again, as ours is

    def summed(call: Callable[[Any], object]) -> Callable[[], float]:
        def run() -> float:
            call(total.ctypes.data_as(pointer))
            return float(total[-1] / weights.sum())

        return run

    def one_by_one(add: Any) -> Callable[[Any], object]:
        return lambda total: [
            add(total, pointers[index], ctypes.c_float(weight), num, index == 0)
            for index, weight in enumerate(weights)
        ]

    def by_tensor(add: Any) -> Callable[[Any], object]:
        tensors = ends.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(ends.size)
        return lambda total: add(total, pointers, sums, len(flats), *tensors)

    sums = weights.ctypes.data_as(pointer)
    return {
        BY_TENSOR: summed(by_tensor(library.per_tensor)),
        WITHIN_TENSORS: summed(by_tensor(library.within_tensors)),
        STREAMED: summed(one_by_one(library.streamed)),
        STREAMED_CHECKED: summed(one_by_one(library.streamed_checked)),
        FUSED: summed(lambda total: library.fused(total, pointers, sums, len(flats), num)),
        FUSED_CHECKED: summed(lambda total: library.fused_checked(total, pointers, sums, len(flats), num)),
        "read": lambda: sum(float(library.read(one, num)) for one in pointers),
    }


def _library() -> Path:
    if (compiler := shutil.which("g++")) is None:
        raise OSError("there is no g++")
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    for_here = f"{flags} {machine.cpu_model()}".encode()
    name = hashlib.sha256(SOURCE.read_bytes() + for_here).hexdigest()[:12]
    path = FLOWER.folder.parent / f"openmp-{name}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, *flags, "-o", str(path), str(SOURCE)], check=True, capture_output=True)
    return path


def text(rows: Sequence[Row]) -> str:
    """GB/s by system and shape, and what they mean."""
    lines = []
    with_look = [{**row, "times_s": _with_look(row["times_s"])} for row in rows]
    for name in NAMES:
        cells = [_rate(row, name) for row in with_look]
        if any(cell != "–" for cell in cells):
            lines.append((name, *cells))
    legend = "\n".join(
        f"- {name}: {what}." for name, what in NAMES.items() if any(name in r["times_s"] for r in with_look)
    )
    missing = {name: why for row in rows for name, why in row["missing"].items()}
    notes = "\n".join(f"- {name} is missing: `{why[-300:]}`" for name, why in missing.items())
    columns = ("GB/s", *(row["shape"] for row in rows))
    told = TEXT.format(num=NUM_UPDATES, table=table(columns, lines), legend=legend, missing=notes)
    return told.rstrip() + "\n\n" + _against_fused(with_look)


def _rate(row: Row, name: str) -> str:
    if name not in row["times_s"]:
        return "–"
    rates = [row["num_bytes"] / 1e9 / seconds for seconds in row["times_s"][name]]
    read = row["num_bytes"] / 1e9 / statistics.median(row["times_s"]["read"])
    middle = statistics.median(rates)
    return f"{middle:.1f} ({min(rates):.1f}–{max(rates):.1f}), {middle / read:.0%}"


def _with_look(times_s: dict[str, list[float]]) -> dict[str, list[float]]:
    """And a row for the sum together with the look, which is done elsewhere."""
    if not {ARRIVED, RECEIVED, LOOKED} <= times_s.keys():
        return times_s
    look_s = max(0.0, statistics.median(times_s[LOOKED]) - statistics.median(times_s[RECEIVED]))
    return {**times_s, WITH_LOOK: [one + look_s for one in times_s[ARRIVED]]}


def _against_fused(rows: Sequence[Row]) -> str:
    """Sentences on where we stand against C++: what promises as much, and the fastest there is."""
    told = []
    for mine, theirs, words in (
        (OURS, STREAMED_CHECKED, "which promises the same"),
        (TOGETHER, STREAMED_CHECKED, "which promises the same"),
        (ARRIVED, FUSED, "which checks nothing and waits for all updates"),
        (BY_BROKER, FUSED, "which checks nothing and waits for all updates"),
        (WITH_LOOK, FUSED, "which checks nothing and waits for all updates"),
        (ARRIVED, BY_TENSOR, "which checks nothing and waits for all updates"),
        (ARRIVED, FUSED_CHECKED, "whose sum one bad value spoils"),
        (WITH_LOOK, FUSED_CHECKED, "whose sum one bad value spoils"),
        (SUM_ONLY, NUMEXPR, "each without checks"),
        (SUM_ONLY, NUMEXPR_BLOCKS, "each without checks"),
        (SUM_ONLY, NUMEXPR_ALL, "each without checks"),
    ):
        shapes = [
            f"{row['shape']} {times(_median_s(row, theirs) / _median_s(row, mine))}"
            for row in rows
            if {mine, theirs} <= row["times_s"].keys()
        ]
        if shapes:
            told.append(f"*{mine}* against *{theirs}*, {words}: {', '.join(shapes)}.")
    looks = [
        f"{row['shape']} {1e3 * (_median_s(row, LOOKED) - _median_s(row, RECEIVED)) / NUM_UPDATES:.1f} ms"
        for row in rows
        if LOOKED in row["times_s"]
    ]
    if looks:
        told.append(f"Looking on arrival takes, for each update: {', '.join(looks)}.")
    told += _reached(rows)
    return "\n\n".join(told)


def _reached(rows: Sequence[Row]) -> list[str]:
    """Sentences on what was wanted: not to be slower than a checked sum in one pass."""
    return [
        verdict(
            f"at least {WANTED:g}× the speed of *{FUSED_CHECKED}*, by *{mine}*",
            [
                (row["shape"], _median_s(row, FUSED_CHECKED) / _median_s(row, mine) >= WANTED)
                for row in rows
                if {mine, FUSED_CHECKED} <= row["times_s"].keys()
            ],
        )
        for mine in (ARRIVED, WITH_LOOK)
        if any({mine, FUSED_CHECKED} <= row["times_s"].keys() for row in rows)
    ]


def _median_s(row: Row, name: str) -> float:
    return float(statistics.median(row["times_s"][name]))


QUESTION = Question(
    name="aggregation",
    title="Aggregation alone",
    place=50,
    run=run,
    keys={f"{parameters}x{tensors}": name for name, (parameters, tensors) in SHAPES.items()},
    text=text,
)
