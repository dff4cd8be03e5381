"""The aggregation of Flower and NVIDIA FLARE alone, in their environments: their functions, our data."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Updates = list[dict[str, Any]]


def main() -> None:
    """Measure one system on one shape of model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=("flower", "flare"))
    for name in ("parameters", "tensors", "updates", "repetitions"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--limit-s", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    size = given.parameters // given.tensors
    updates = [
        {f"t{tensor}": np.full(size, number + 0.5, np.float32) for tensor in range(given.tensors)}
        for number in range(given.updates)
    ]
    run = flower(updates) if given.system == "flower" else flare(updates)
    times_s: list[float] = []
    first = 0.0
    while len(times_s) <= given.repetitions and (len(times_s) < 2 or sum(times_s) < given.limit_s):
        began = time.perf_counter()
        first = run()
        times_s.append(time.perf_counter() - began)
    weights = np.arange(1, given.updates + 1)
    expected = float((weights * (weights - 0.5)).sum() / weights.sum())
    assert abs(first - expected) < 1e-3 * expected, (first, expected)
    given.out.write_text(json.dumps({"times_s": times_s[1:]}))


def flower(updates: Updates) -> Callable[[], float]:
    """What its strategies call for the weighted mean of numpy arrays."""
    from flwr.server.strategy.aggregate import aggregate

    results = [(list(update.values()), number + 1) for number, update in enumerate(updates)]
    return lambda: float(aggregate(results)[0][0])


def flare(updates: Updates) -> Callable[[], float]:
    """Its in-time accumulator: updates one after the other, as they arrive."""
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    def run() -> float:
        helper = WeightedAggregationHelper()
        for number, update in enumerate(updates):
            helper.add(update, number + 1, f"site-{number}", 0)
        return float(helper.get_result()["t0"][0])

    return run


if __name__ == "__main__":
    main()
