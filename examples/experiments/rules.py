"""What aggregation rules make of data that differs: accuracy of each round, on two splits by label.

python -m examples.experiments.rules
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from broker_fl.partition import dirichlet, shards

from .experiment import Experiment, Figures
from .federation import labels, run, sites
from .plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, label_ends, panels, whole_numbers
from .tables import table

ALPHA, SHARDS, EPOCHS, MU = 0.1, 2, 5, 0.1
LAST = 10
"""Rounds at the end over which accuracies are averaged."""
SPLITS = {"dirichlet": f"Dirichlet by label, α = {ALPHA:g}", "shards": f"{SHARDS} shards by label each"}
RULES: dict[str, dict[str, Any]] = {
    "FedAvg": {"name": "fedavg"},
    "FedProx": {"name": "fedprox", "mu": MU},
    "FedNova": {"name": "fednova"},
    "FedAvgM": {"name": "fedavgm"},
    "FedAdam": {"name": "fedadam"},
    "FedYogi": {"name": "fedyogi"},
    "SCAFFOLD": {"name": "scaffold"},
}
SMOOTH = 5
"""Rounds over which the lines of the picture are averaged."""
DASHES = {"FedNova": (0, (3, 2)), "FedYogi": (0, (3, 2))}
"""So that a line that lies on another shows."""
COLOURS = dict(zip(RULES, (BLACK, SKY, ORANGE, PURPLE, BLUE, GREEN, VERMILION), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One size of the experiment."""

    num_learners: int
    rounds: int
    seeds: int
    rules: tuple[str, ...]
    splits: tuple[str, ...]
    fraction: float = 0.5


FULL = Setting(num_learners=20, rounds=30, seeds=3, rules=tuple(RULES), splits=tuple(SPLITS))
QUICK = Setting(num_learners=6, rounds=8, seeds=1, rules=("FedAvg", "SCAFFOLD"), splits=("shards",))


def measure(quick: bool) -> Figures:
    """Each rule on each split, several times."""
    setting = QUICK if quick else FULL
    return {
        **asdict(setting),
        "found": {
            split: {
                rule: [_run(setting, split, rule, seed) for seed in range(setting.seeds)]
                for rule in setting.rules
            }
            for split in setting.splits
        },
    }


def _run(setting: Setting, split: str, rule: str, seed: int) -> Figures:
    num = setting.num_learners
    if split == "shards":
        parts = shards(labels(), num, shards_per_part=SHARDS, seed=seed)
    else:
        parts = dirichlet(labels(), num, alpha=ALPHA, seed=seed, min_examples=16)
    job = {
        "rule": RULES[rule],
        "selector": {"name": "random", "fraction": setting.fraction, "seed": seed},
        "protocol": {"min_learners": num},
        "termination": {"rounds": setting.rounds},
        "parameters": {"epochs": EPOCHS, "learning_rate": 0.1, "seed": seed},
    }
    outcome = run(sites(parts), job)
    history = outcome.history
    return {"accuracy": outcome.accuracy, "num_bytes": history.bytes_down + history.bytes_up}


# ---------------------------------------------------------------- the picture


def draw(figures: Figures) -> Figure:
    """Mean accuracy over the seeds, smoothed over rounds, a panel for each split."""
    figure, (row,) = panels(1, len(figures["splits"]), 4.4, _title(figures), sharey=True)
    for axes, split in zip(row, figures["splits"], strict=True):
        ends = []
        for rule, runs in figures["found"][split].items():
            smooth = _smoothed(np.mean([found["accuracy"] for found in runs], axis=0))
            axes.plot(range(len(smooth)), smooth, color=COLOURS[rule], linestyle=DASHES.get(rule, "-"))
            ends.append((smooth[-1], rule, COLOURS[rule]))
        axes.set_title(SPLITS[split])
        whole_numbers(axes, "round")
        axes.set_xlim(0, figures["rounds"])
        axes.set_ylim(0.5, 1.0)
        label_ends(axes, ends, 0.03, room=0.27)
    row[0].set_ylabel("accuracy on held-out digits")
    return figure


def _smoothed(values: Any) -> list[float]:
    """The mean of each round and those before it: with half of the learners in each, rounds vary much."""
    return [float(np.mean(values[max(0, end - SMOOTH) : end])) for end in range(1, len(values) + 1)]


def _title(figures: Figures) -> str:
    better = _always_better(figures)
    return f"Ahead of FedAvg with every seed: {', '.join(better) or 'none'}"


def _always_better(figures: Figures) -> list[str]:
    """The rules that end above FedAvg in every run."""
    return [
        rule
        for rule in figures["rules"]
        if all(
            end > base
            for found in figures["found"].values()
            for end, base in zip(_ends(found[rule]), _ends(found["FedAvg"]), strict=True)
        )
    ]


def _ends(runs: list[Figures]) -> list[float]:
    """Accuracy of each run over its last rounds."""
    return [float(np.mean(found["accuracy"][-LAST:])) for found in runs]


# ---------------------------------------------------------------- the page


def sentence(figures: Figures) -> str:
    """The finding."""
    return (
        f"Ahead of FedAvg on data split by label, in both ways and with every seed: "
        f"{', '.join(_always_better(figures)) or 'none'}."
    )


def section(figures: Figures) -> str:
    """Of the page."""
    rows = [
        [rule, *(_cell(found[rule]) for found in figures["found"].values()), _volume(figures, rule)]
        for rule in figures["rules"]
    ]
    head = ["rule", *(SPLITS[split] for split in figures["splits"]), "sent to and fro"]
    return TEXT.format(
        table=table(head, rows),
        alpha=ALPHA,
        shards=SHARDS,
        epochs=EPOCHS,
        mu=MU,
        last=LAST,
        smooth=SMOOTH,
        **{key: figures[key] for key in ("num_learners", "rounds", "seeds", "fraction")},
    )


def _cell(runs: list[Figures]) -> str:
    ends = _ends(runs)
    return f"{np.mean(ends):.3f} ({min(ends):.3f} to {max(ends):.3f})"


def _volume(figures: Figures, rule: str) -> str:
    """Bytes of a run in multiples of FedAvg's."""
    sizes = [
        np.mean([run["num_bytes"] for found in figures["found"].values() for run in found[name]])
        for name in (rule, "FedAvg")
    ]
    return f"{sizes[0] / sizes[1]:.2f} ×"


TEXT = """## Rules on data that differs

{num_learners} learners, of whom a random half (`fraction = {fraction:g}`) trains {epochs} epochs in each of
{rounds} rounds. The digits are split by label in two ways: Dirichlet with α = {alpha:g}, which makes the
learners' shares of very different size, too; and {shards} shards each, so that all have equally many
examples of two or three digits. All rules have the settings that a job has by default; FedProx, which has
none, has `mu = {mu:g}`. {seeds} seeds, each of which draws another split and other cohorts.

![Accuracy by round](pictures/experiment-rules.svg)

The lines are means over the seeds, and over {smooth} rounds; the table has accuracies of the last {last}
rounds, mean (lowest to highest seed), and the bytes that travelled in multiples of FedAvg's:

{table}

- SCAFFOLD is ahead from early on. It costs traffic: a control variate goes with each model, both ways, and
  learners have to keep theirs.
- FedAdam and FedYogi end within SCAFFOLD's range with Dirichlet, and near it with shards, at FedAvg's
  traffic. The two are hardly distinguishable here. That their default learning rate fits this task does not
  mean that it fits another.
- FedAvgM is behind FedAvg at first with Dirichlet, and ahead later.
- FedNova is for learners that do unequal work: it gains on FedAvg where sizes differ, and is FedAvg where
  all do equally many steps.
- FedProx gains nothing here: it holds all learners back alike, whether they drift or get on. What it is
  meant for besides, learners that do only part of the work, does not occur.
"""

EXPERIMENT = Experiment(
    name="rules", about=__doc__, run=measure, draw=draw, section=section, sentence=sentence
)

if __name__ == "__main__":
    EXPERIMENT.main()
