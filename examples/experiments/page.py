"""Write ``docs/experiments.md``, and the sentences of the README, from the figures in ``docs/pictures``.

python -m examples.experiments.page
"""

from __future__ import annotations

import re
from pathlib import Path

from . import killed, protocols, rules, stragglers

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "experiments.md", ROOT / "README.md"
EXPERIMENTS = [module.EXPERIMENT for module in (stragglers, killed, protocols, rules)]
IN_README = {
    "protocols": "Accuracy against time under four protocols",
    "stragglers": "Round-trip time and local epochs by learner and round",
}
_MARKED = re.compile(r"(?<=<!-- experiments -->\n).*?(?=<!-- /experiments -->)", re.DOTALL)
INTRODUCTION = """<!-- Written by: python -m examples.experiments.page -->

# Experiments

How protocols, pacing and rules behave, on scikit-learn's digits with the small network of
`examples/digits.py`. Each experiment is a script; all figures of this page are its own
(`docs/pictures/experiment-*.json`):

```
python -m examples.experiments.stragglers     # also: killed, protocols, rules; together about four minutes
python -m examples.experiments.page           # this page, from their figures
```

`--quick` runs a small one, `--out` writes elsewhere, `--redraw` only draws. All run in the simulation
([simulation.md](simulation.md)), where an optimiser step takes as long as the script says, divided by the
learner's speed: times say what the protocol does, not how fast this machine is. Real are the time that
messages, sums and the store take (some hundredths of a second a round) and the accuracies, of each version
on the 360 digits that no learner has: one digit more or less is 0.003. Splits, speeds, deaths, cohorts and
initial model are seeded.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(
        [INTRODUCTION, *(experiment.section(experiment.figures()) for experiment in EXPERIMENTS)]
    )


def readme(text: str) -> str:
    """The README with the newest figures between its marks."""
    found = {experiment.name: experiment for experiment in EXPERIMENTS}
    parts = [
        f"{found[name].sentence(found[name].figures())}\n\n![{caption}](docs/pictures/experiment-{name}.svg)\n"
        for name, caption in IN_README.items()
    ]
    return _MARKED.sub(lambda _: "\n" + "\n".join(parts) + "\n", text)


def main() -> None:
    """Write both."""
    PAGE.write_text(page(), "utf-8")
    README.write_text(readme(README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
