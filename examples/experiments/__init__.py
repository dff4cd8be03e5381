"""Experiments on the digits in the simulation, a script for each question; see ``docs/experiments.md``."""
