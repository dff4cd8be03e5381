"""What encodings cost in accuracy, and what they save: bytes, and seconds of a round."""

from __future__ import annotations

import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from benchmarks import encoded_rounds
from benchmarks.cells import now, or_failed
from benchmarks.digit_runs import ALPHA, Experiment, Run, cnn_run, digits_run
from benchmarks.encoded_rounds import Transfers
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import seconds, table, verdict
from broker_fl.frameworks import LocalTask
from broker_fl.simulation import Federation
from broker_fl.wire.events import TaskSent, UpdateFolded
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.protocols import Synchronous

SEEDS = 5
FLOAT32 = "float32"
AGAIN = "float32, other batches"
"""The same once more with batches in another order: how far apart runs are that differ in nothing else."""
TRANSFERS: Transfers = {
    FLOAT32: {},
    AGAIN: {},
    "`float16`": {"encoding": "float16"},
    "`bfloat16`": {"encoding": "bfloat16"},
    "`bfloat16`, changes": {"encoding": "bfloat16", "form": "changes"},
    "`int8`": {"encoding": "int8"},
    "`int8`, broadcast too": {"encoding": "int8", "broadcast": "int8"},
    "`topk/10`": {"encoding": "topk/10"},
    "`topk/100`": {"encoding": "topk/100"},
}
TIMED: Cell = (10, 1_000_000)
TIMED_QUICK: Cell = (2, 10_000)

TEXT = """Both networks learn scikit-learn's digits, some of which are held out; of the others each learner
has another mix (Dirichlet, alpha = {alpha:g}). Every one of {seeds} seeds is another split, another
initial model and another order of batches, the same for all encodings. *Other batches* is float32 with yet
another order: what differs by as much is chance. Accuracy is of the held-out images,
its mean ± standard deviation over the seeds; *difference* is to float32 with the same seed, in percentage
points; *loss* is of the last round. Bytes are of one learner in one round, *down* with the task's header,
*up* without. Accuracy and bytes do not depend on how busy the machine is; seconds do.

{parts}"""
PART = """**{title}**: {learners} learners, {parameters:,} parameters, {rounds} rounds.

{table}

{verdict}"""
TIMES = """**Seconds a round**, median (least to most) of {rounds} rounds of {learners} learners that do not
train, {parameters:,} parameters, after one of each job that is not counted. {how}
Embedded, nothing is carried anywhere: there the encoding itself is what takes time.

{table}"""
ALTERNATING = """In fresh processes and on fresh servers for each repetition, in which the encodings take
turns, each time from another one on."""
IN_ORDER = "Some or all were measured one after the other, float32 first: they are no ratios."
NO_TORCH = "The convolutional network was left out: PyTorch is not installed."


EXPERIMENTS = {
    "digits": Experiment(
        title="The network of `examples/digits.py`",
        learners=10,
        rounds=20,
        parameters={"epochs": 1, "learning_rate": 0.2},
    ),
    "cnn": Experiment(
        title="A convolutional network",
        learners=5,
        rounds=8,
        parameters={"epochs": 1, "batch_size": 16},
    ),
}


def run(options: Options) -> Iterator[Row]:
    """Accuracies and bytes, then seconds; where cells are asked for, these alone."""
    transfers = {name: TRANSFERS[name] for name in (FLOAT32, "`int8`")} if options.quick else TRANSFERS
    names = [name for name in EXPERIMENTS if name != "cnn" or importlib.util.find_spec("torch")]
    names = [] if options.cells else ["digits"] if options.quick else names
    for name in names:
        for title, transfer in transfers.items():
            if options.is_over:
                return
            found = or_failed(functools.partial(accuracies, quick=options.quick), name, title, transfer)
            found.pop("busy_share")  # does not matter for accuracy
            yield {"key": f"{name} {title}", **found}
    cell = options.cells_of((TIMED,), TIMED_QUICK)[0]
    timed = {title: transfer for title, transfer in transfers.items() if title != AGAIN}
    for transport in options.transports:
        if options.is_over:
            return
        yield from _timed(transport, cell, timed, options)


# ---------------------------------------------------------------- accuracy


MAKERS = {"digits": digits_run, "cnn": cnn_run}


def accuracies(name: str, title: str, transfer: Mapping[str, str], *, quick: bool) -> Row:
    """One row: an experiment with an encoding, over all seeds."""
    experiment = EXPERIMENTS[name]
    rounds = 2 if quick else experiment.rounds
    settings = JobSpec(
        name="encodings",
        protocol=Synchronous(min_learners=experiment.learners),
        termination=Termination(rounds=rounds),
        parameters=dict(experiment.parameters),
        transfer=Transfer.model_validate(transfer),
        evaluate=False,
        keep_versions=rounds + 1,
    )
    row: Row = {
        "key": f"{name} {title}",
        "what": name,
        "encoding": title,
        "transfer": dict(transfer),
        "learners": experiment.learners,
        "rounds": rounds,
        "early_round": max(1, rounds // 4),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "early": [],
        "final": [],
        "loss": [],
    }
    for seed in range(1 if quick else SEEDS):
        order = seed + SEEDS if title == AGAIN else seed
        row |= _run(row, settings, MAKERS[name](experiment, seed, order))
    print(f"{row['key']}: {[round(one, 3) for one in row['final']]}", file=sys.stderr, flush=True)
    return row


def _run(row: Row, settings: JobSpec, run: Run) -> Row:
    """One seed: accuracies are added to those of the row; the rest is the same for all."""
    with Federation(run.learners) as federation:
        job = federation.submit(settings, run.initial)
        if (end := job.wait()).state != "done":
            raise RuntimeError(f"{row['key']}: the job {end.state}: {end.reason}")
        early, final = (
            run.judge.evaluate(dict(job.model(version)), LocalTask())
            for version in (row["early_round"], row["rounds"])
        )
        events = list(job.events(follow=False))
    sent = [one for one in events if isinstance(one, TaskSent)]
    return {
        "early": [*row["early"], early["accuracy"]],
        "final": [*row["final"], final["accuracy"]],
        "loss": [*row["loss"], final["loss"]],
        "parameters": run.initial.spec.num_elements,
        "down_bytes": statistics.fmean(one.num_bytes / len(one.learners) for one in sent),
        "up_bytes": statistics.fmean(one.num_bytes for one in events if isinstance(one, UpdateFolded)),
    }


# ---------------------------------------------------------------- seconds


def _timed(transport: str, cell: Cell, transfers: Transfers, options: Options) -> Iterator[Row]:
    """A row for each encoding, when all are measured."""
    repetitions = 1 if options.quick else options.repetitions
    found = or_failed(encoded_rounds.alternating, transport, cell, transfers, options.rounds, repetitions)
    by_encoding = found.pop("round_s", {})
    for title in transfers:
        yield {
            "key": f"{transport} {title}",
            "what": "seconds",
            "transport": transport,
            "encoding": title,
            "learners": cell[0],
            "parameters": cell[1],
            **now(),
            **found,
            **({"round_s": by_encoding[title], "repetitions": repetitions} if by_encoding else {}),
        }


# ---------------------------------------------------------------- the page


def text(rows: Sequence[Row]) -> str:
    """A table for each network, and one of seconds."""
    parts = []
    for name, experiment in EXPERIMENTS.items():
        of = [row for row in rows if row["what"] == name]
        if of:
            first = of[0]
            parts.append(
                PART.format(
                    title=experiment.title,
                    learners=first["learners"],
                    parameters=first["parameters"],
                    rounds=first["rounds"],
                    table=_accuracy_table(of),
                    verdict=_within_noise(of),
                )
            )
        elif name == "cnn" and not importlib.util.find_spec("torch"):
            parts.append(NO_TORCH)
    if timed := [row for row in rows if row["what"] == "seconds"]:
        parts.append(_times(timed))
    seeds = max((len(row["final"]) for row in rows if "final" in row), default=0)
    return TEXT.format(alpha=ALPHA, seeds=seeds, parts="\n\n".join(parts))


def _accuracy_table(rows: Sequence[Row]) -> str:
    base = next((row for row in rows if row["encoding"] == FLOAT32), None)
    lines = [
        (
            row["encoding"],
            _percent(row["early"]),
            _percent(row["final"]),
            _difference(row, base),
            f"{statistics.fmean(row['loss']):.3f} ± {_deviation(row['loss']):.3f}",
            f"{_bytes(row['down_bytes'])} / {_bytes(row['up_bytes'])}",
        )
        for row in rows
    ]
    early = rows[0]["early_round"]
    columns = ("encoding", f"round {early}", "last round", "difference", "loss", "bytes down / up")
    return table(columns, lines)


def _percent(shares: Sequence[float]) -> str:
    return f"{statistics.fmean(shares):.1%} ± {_deviation(shares):.1%}"


def _difference(row: Row, base: Row | None) -> str:
    if not (points := _points(row, base)):
        return "–"
    return f"{statistics.fmean(points):+.1f} ± {_deviation(points):.1f}"


def _points(row: Row, base: Row | None) -> list[float]:
    """Percentage points of accuracy above float32's, by seed; empty without seeds to compare."""
    if base is None or row is base or len(base["final"]) != len(row["final"]):
        return []
    return [100 * (a - b) for a, b in zip(row["final"], base["final"], strict=True)]


def _within_noise(rows: Sequence[Row]) -> str:
    """A sentence on which encodings cost no more accuracy than chance."""
    by_name = {row["encoding"]: row for row in rows}
    base = by_name.get(FLOAT32)
    chance = _points(by_name[AGAIN], base) if AGAIN in by_name else []
    if len(chance) < 2:
        return ""
    limit = _deviation(chance)
    held = [
        (name, points)
        for name, row in by_name.items()
        if name not in (FLOAT32, AGAIN) and (points := _points(row, base))
    ]
    told = verdict(
        f"accuracy within noise, here a mean difference to float32 of less than {limit:.1f} points "
        f"either way, the standard deviation of *{AGAIN}*",
        [(name, abs(statistics.fmean(points)) < limit) for name, points in held],
    )
    if same := [name for name, points in held if not any(points)]:
        told += (
            f" Equal to float32 to the image, by which this task cannot tell them apart: {', '.join(same)}."
        )
    return told


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _bytes(number: float) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def _times(rows: Sequence[Row]) -> str:
    transports = list(dict.fromkeys(row["transport"] for row in rows))
    by_encoding: dict[str, dict[str, str]] = {}
    for row in rows:
        middle, least, most = statistics.median(row["round_s"]), min(row["round_s"]), max(row["round_s"])
        shown = f"{seconds(middle)} ({seconds(least)}–{seconds(most)})"
        by_encoding.setdefault(row["encoding"], {})[row["transport"]] = shown
    lines = [(name, *(of.get(one, "–") for one in transports)) for name, of in by_encoding.items()]
    names = {"embedded": "embedded", "rabbitmq": "RabbitMQ and Redis"}
    return TIMES.format(
        how=ALTERNATING if all("repetitions" in row for row in rows) else IN_ORDER,
        rounds=max(len(row["round_s"]) for row in rows),
        learners=rows[0]["learners"],
        parameters=rows[0]["parameters"],
        table=table(("encoding", *(names[one] for one in transports)), lines),
    )


QUESTION = Question(
    name="encodings",
    title="Encodings: accuracy, bytes, seconds",
    place=60,
    run=run,
    keys={
        **{f"{name} {title}": f"{name} {title}" for name in EXPERIMENTS for title in TRANSFERS},
        **{
            f"{transport} {title}": f"{transport} {title}"
            for transport in ("embedded", "rabbitmq")
            for title in TRANSFERS
            if title != AGAIN
        },
    },
    text=text,
)
