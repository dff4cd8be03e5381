"""What attackers do to each of the aggregation rules: test accuracy on the digits, for each rule and attack.

python -m benchmarks.attacks --out docs/attacks.md
python -m benchmarks.attacks --quick          # few rounds, one attack: for checking that it works
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from broker_fl.apps import App, load_app
from broker_fl.frameworks import ControlVariate, ProximalTerm
from broker_fl.interfaces import Learner, Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays
from broker_fl.partition import dirichlet
from broker_fl.simulation import Federation
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import NormClipping, Robust

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"
COMMAND = "python -m benchmarks.attacks --out docs/attacks.md"
FLIP_SCALE = 5.0
NOISE_SCALE = 1.0
MAX_NORM = 1.0
LEARNING_RATE, BATCH_SIZE, EPOCHS = 0.2, 16, 5
BUFFER_SIZE = 5
SPLITS = {"alike": 100.0, "uneven": 0.3}
"""How the digits are split over the learners: the Dirichlet distribution's alpha."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One size of the experiment."""

    num_learners: int
    num_attackers: int
    rounds: int
    attacks: tuple[str, ...]
    splits: tuple[str, ...]


FULL = Setting(
    num_learners=15,
    num_attackers=3,
    rounds=20,
    attacks=("none", "sign-flipping", "label-flipping", "scaled noise", "free rider"),
    splits=("alike", "uneven"),
)
QUICK = Setting(
    num_learners=7, num_attackers=1, rounds=3, attacks=("none", "scaled noise"), splits=("alike",)
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, and print or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, one attack")
    parser.add_argument("--out", type=Path, help="a Markdown file; without it the page is only printed")
    given = parser.parse_args(arguments)
    setting = QUICK if given.quick else FULL
    text = page(setting, {split: accuracies(setting, split) for split in setting.splits})
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- attackers


Corruption = Callable[[Arrays, Arrays, np.random.Generator], Arrays]
"""From the given model and the trained one, with an attacker's own chance, to what is sent."""


class Honest:
    """Trains the network of the example, with what FedProx and SCAFFOLD add to the gradients."""

    def __init__(self, app: App, examples: Any) -> None:
        self._app = app
        self._examples = examples

    def train(self, model: Arrays, task: TaskContext) -> Update:
        images, digits = self._examples
        control, proximal = ControlVariate(task), ProximalTerm(model, task)
        rng = np.random.default_rng([task.round, *task.learner.encode()])
        num_steps = 0
        for _ in range(EPOCHS):
            order = rng.permutation(len(digits))
            for start in range(0, len(digits), BATCH_SIZE):
                batch = order[start : start + BATCH_SIZE]
                for name, gradient in self._app.module.gradients(model, images[batch], digits[batch]).items():
                    step = control.corrected(name, gradient) + proximal.gradient(name, model[name])
                    model[name][...] -= np.float32(LEARNING_RATE) * step
                num_steps += 1
        return Update(model=model, num_examples=len(digits), num_steps=num_steps, control=control.result())

    def evaluate(self, model: Arrays, _: TaskContext) -> Metrics:
        found: Metrics = self._app.module.measure(model, self._examples)
        return found


class Attacker:
    """A learner that trains like the others, and sends something else."""

    def __init__(self, honest: Learner, corrupt: Corruption) -> None:
        self._honest = honest
        self._corrupt = corrupt

    def train(self, model: Arrays, task: TaskContext) -> Update:
        given = {name: array.copy() for name, array in model.items()}
        update = self._honest.train(model, task)
        rng = np.random.default_rng([task.round, *task.learner.encode()])
        return replace(update, model=self._corrupt(given, update.model, rng))

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return self._honest.evaluate(model, task)


def flip_sign(given: Arrays, trained: Arrays, _: np.random.Generator) -> Arrays:
    """A step in the opposite direction, several times as long."""
    return {name: given[name] - np.float32(FLIP_SCALE) * (trained[name] - given[name]) for name in given}


def send_back(given: Arrays, _: Arrays, __: np.random.Generator) -> Arrays:
    """The given model, as if there had been nothing to learn."""
    return given


def add_noise(given: Arrays, _: Arrays, rng: np.random.Generator) -> Arrays:
    """Large normal noise in place of training."""
    return {name: _noisy(array, rng) for name, array in given.items()}


def _noisy(array: Array, rng: np.random.Generator) -> Array:
    return (array + rng.normal(0, NOISE_SCALE, array.shape)).astype(array.dtype)


CORRUPTIONS = {"sign-flipping": flip_sign, "scaled noise": add_noise, "free rider": send_back}


def make_learners(app: App, setting: Setting, split: str, attack: str) -> dict[str, Learner]:
    """The honest ones and, spread evenly among them, the attackers."""
    train, _ = app.module.load()
    count = setting.num_learners
    parts = dirichlet(train.digits, count, alpha=SPLITS[split], seed=0, min_examples=10)
    bad = set(np.linspace(0, count - 1, setting.num_attackers).astype(int)) if attack != "none" else set()
    learners: dict[str, Learner] = {}
    for index, chosen in enumerate(parts):
        flip = attack == "label-flipping" and index in bad
        digits = 9 - train.digits[chosen] if flip else train.digits[chosen]
        learner: Learner = Honest(app, train._replace(images=train.images[chosen], digits=digits))
        if index in bad and not flip:
            learner = Attacker(learner, CORRUPTIONS[attack])
        learners[f"learner-{index:02}"] = learner
    return learners


# ---------------------------------------------------------------- measuring


ASYNCHRONOUS = ("fedasync", "fedbuff", "fedrec")


def rules(num_attackers: int) -> dict[str, dict[str, Any]]:
    """Settings of each rule, by what it is called in the table."""
    robust = {
        "median": "Median",
        "trimmed_mean": "Trimmed mean",
        "krum": "Krum",
        "multi_krum": "Multi-Krum",
        "bulyan": "Bulyan",
        "geometric_median": "Geometric median (RFA)",
    }
    return {
        "FedAvg": {"name": "fedavg"},
        "FedProx": {"name": "fedprox", "mu": 0.1},
        "FedAvgM": {"name": "fedavgm"},
        "FedAdagrad": {"name": "fedadagrad"},
        "FedAdam": {"name": "fedadam", "learning_rate": 0.03},
        "FedYogi": {"name": "fedyogi", "learning_rate": 0.03},
        "FedNova": {"name": "fednova"},
        "q-FedAvg": {"name": "qfedavg", "learning_rate": LEARNING_RATE},
        "SCAFFOLD": {"name": "scaffold"},
        "FedAsync": {"name": "fedasync"},
        "FedBuff": {"name": "fedbuff", "buffer_size": BUFFER_SIZE},
        "FedRec": {"name": "fedrec"},
        f"Norm clipping to {MAX_NORM:g}": {"name": "norm_clipping", "max_norm": MAX_NORM},
        **{title: {"name": name, "max_attackers": num_attackers} for name, title in robust.items()},
    }


def accuracies(setting: Setting, split: str) -> dict[str, dict[str, float]]:
    """Test accuracy after the last round, by rule and attack."""
    app = load_app(f"{EXAMPLE}:make_learner")
    found: dict[str, dict[str, float]] = {}
    for title, rule in rules(setting.num_attackers).items():
        found[title] = {}
        for attack in setting.attacks:
            learners = make_learners(app, setting, split, attack)
            found[title][attack] = accuracy(app, learners, spec_of(setting, rule))
            print(f"{split}, {title}, {attack}: {found[title][attack]:.3f}", file=sys.stderr, flush=True)
    return found


def spec_of(setting: Setting, rule: Mapping[str, Any]) -> JobSpec:
    """One job of the experiment."""
    protocol: dict[str, Any] = {"min_learners": setting.num_learners}
    termination = {"rounds": setting.rounds}
    if rule["name"] in ASYNCHRONOUS:
        protocol["name"], termination = "asynchronous", {"updates": setting.rounds * setting.num_learners}
    return JobSpec.model_validate(
        {
            "rule": rule,
            "protocol": protocol,
            "termination": termination,
            "evaluate": rule["name"] == "qfedavg",
        }
    )


def accuracy(app: App, learners: Mapping[str, Learner], spec: JobSpec) -> float:
    """Of the job's last version, on the held-out digits."""
    with Federation(learners) as federation:
        job = federation.submit(spec, app.initial_model())
        end = job.wait()
        if end.state != "done":  # attackers have ruined the model beyond what its type can hold
            print(f"the job {end.state}: {end.reason}", file=sys.stderr, flush=True)
        with np.errstate(over="ignore", invalid="ignore"):  # of a model that attackers have ruined
            return float(app.module.test_metrics(job.model())["accuracy"])


# ---------------------------------------------------------------- the page


def page(setting: Setting, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """All tables, and what is in them."""
    share = setting.num_attackers / setting.num_learners
    parts = [
        INTRODUCTION.format(
            command=COMMAND,
            flip_scale=FLIP_SCALE,
            noise_scale=NOISE_SCALE,
            share=share,
            buffer_size=BUFFER_SIZE,
            **asdict(setting),
        )
    ]
    for split, rows in found.items():
        parts += [TITLES[split], table(setting, rows)]
    return "\n\n".join([*parts, "## What each rule withstands", requirements(setting), NOTES]) + "\n"


INTRODUCTION = """<!-- Written by: {command} -->

# Rules under attack

`{command}` wrote this page.

{num_learners} learners train the network of `examples/digits.py` for {rounds} rounds in the simulation;
{num_attackers} of them ({share:.0%}) attack in every round. The numbers are accuracies of the last version on
the held-out digits. One run each: differences of a percent or two say nothing.

- **sign-flipping**: sends its training step times -{flip_scale:g};
- **label-flipping**: trains on digits 9 - d in place of d;
- **scaled noise**: sends the given model plus normal noise, {noise_scale:g} standard deviation for each
  weight;
- **free rider**: sends back the model that it was given.

What else an update has (examples, steps, SCAFFOLD's control variate) attackers tell as honest learners do.
FedAsync, FedBuff and FedRec are asynchronous: they take as many updates as {rounds} rounds have, in the
order in which they come, so that theirs are the numbers that differ most from run to run. Rules are at their
defaults, but FedProx with mu = 0.1, FedAdam and FedYogi with a learning rate of 0.03, q-FedAvg with that of
the learners, FedBuff with a buffer of {buffer_size}. All but the robust ones and norm clipping are here for
comparison: none claims to withstand attackers. Where nothing finite can be made of a ruined model any more,
its job fails, and the number is that of its last version."""
TITLES = {
    "alike": "## Learners whose data is alike\n\nThe digits are split evenly at random "
    "(Dirichlet, alpha = 100). This is what the papers of the robust rules assume.",
    "uneven": "## Learners whose data differs\n\nEach learner has few examples of most digits "
    "(Dirichlet, alpha = 0.3, as in the example). An honest learner is then far from the others too, and a "
    "rule that leaves updates out leaves out what only they know.",
}
NOTES = """Free riders send the same to the last bit. That is what Krum looks for, and where honest learners
are far from one another, a few of them are its choice.

`f` is the job's `rule.max_attackers`, `n` the updates of a round. A job whose settings let a round
end with fewer updates is refused when it is submitted; a round that ends with fewer all the same fails with
the reason. Norm clipping does not keep attackers out, it bounds what they can do in a round: `f` of `n` move
the model by no more than `max_norm` × f / n. These rules give each update one vote by default, since how
many examples it stands for is its learner's own word."""


def table(setting: Setting, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rules by attacks."""
    head = ["rule", *("no attack" if attack == "none" else attack for attack in setting.attacks)]
    lines = [head, ["---", *("---:" for _ in setting.attacks)]]
    lines += [[title, *(f"{row[attack]:.3f}" for attack in setting.attacks)] for title, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


MEMORY = {
    **dict.fromkeys(["fedavg", "fedprox"], "one model"),
    **dict.fromkeys(["norm_clipping", "fednova", "qfedavg", "fedasync", "fedbuff"], "two models"),
    **dict.fromkeys(["fedavgm", "scaffold"], "three models"),
    **dict.fromkeys(["fedadagrad", "fedadam", "fedyogi"], "four models"),
    "fedrec": "seven models",
}
"""Of rules that stream, with what is kept between rounds."""


def requirements(setting: Setting) -> str:
    """What each rule asks for, from its settings."""
    lines = [["rule", "updates needed", f"of {setting.num_learners}, attackers at most", "memory"]]
    lines.append(["---", "---", "---:", "---"])
    for title, rule in rules(setting.num_attackers).items():
        settings = spec_of(setting, rule).rule
        if isinstance(settings, Robust):
            most = max(f for f in range(setting.num_learners) if _fits(settings, f, setting.num_learners))
            lines.append([title, f"n ≥ {settings.formula}", str(most), "one model per learner"])
        else:
            bounded = isinstance(settings, NormClipping)
            lines.append([title, "n ≥ 1", "bounded" if bounded else "none", MEMORY[settings.name]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fits(settings: Robust, num_attackers: int, num_updates: int) -> bool:
    return settings.model_copy(update={"max_attackers": num_attackers}).updates_needed() <= num_updates


if __name__ == "__main__":
    main()
