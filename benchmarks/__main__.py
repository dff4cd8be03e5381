"""All benchmarks, and the page that they fill: ``python -m benchmarks`` (``make bench``)."""

from __future__ import annotations

import sys

from benchmarks import round_overhead

PAGE = ["--page", "docs/benchmarks.md", "--out", "benchmarks/results/round_overhead.json"]

if __name__ == "__main__":
    round_overhead.main(PAGE + sys.argv[1:])
