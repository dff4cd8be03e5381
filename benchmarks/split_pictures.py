"""Pictures of the ways to split data: scikit-learn's digits, 20 learners.

python -m benchmarks.split_pictures --out docs/pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_digits

from broker_fl import partition
from broker_fl.record.split import save_split

LEARNERS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder of the pictures")
    folder = parser.parse_args(arguments).out
    folder.mkdir(parents=True, exist_ok=True)
    labels = load_digits().target
    splits = {
        "dirichlet": ("Dirichlet by label, alpha = 0.3", partition.dirichlet(labels, LEARNERS, alpha=0.3)),
        "shards": ("Two shards each", partition.shards(labels, LEARNERS, shards_per_part=2)),
        "power-law": ("Sizes by a power law, exponent 1", partition.power_law(len(labels), LEARNERS)),
    }
    for name, (title, parts) in splits.items():
        print(
            save_split(
                parts, labels, folder / f"split-{name}.svg", title=f"{title}: the digits of 20 learners"
            )
        )


if __name__ == "__main__":
    main()
