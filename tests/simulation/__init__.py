"""The real roles under a virtual clock, among faults that follow from a seed.

``python -m tests.simulation --seeds 100000``; ``--seed N`` prints all that happened in one: docs/faults.md.
"""
