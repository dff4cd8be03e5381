"""Euclidean distances between models, over their float tensors.

``‖a - b‖² = ‖a‖² + ‖b‖² - 2 a·b``: all of them at once from the matrix of inner products, which BLAS adds up
block by block. Models are taken relative to the one that the learners were given, in float64: what is taken
away from one another is then as large as the training steps, not as the weights, and a far attacker does not
blur the distances between the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from broker_fl.aggregation import fused
from broker_fl.aggregation.blocks import float_blocks
from broker_fl.aggregation.changes import float_runs
from broker_fl.model import Array, Model, ModelSpec


def pairwise(spec: ModelSpec, models: Sequence[Model], origin: Model) -> Array:
    """Squared distances, models × models; infinite where they overflow float64."""
    coefficients = np.zeros(len(models) + 1)
    coefficients[-1] = 1.0
    products = inner_products(spec, [*models, origin], coefficients)[:-1, :-1]
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.diagonal(products)
        found = lengths[:, None] + lengths[None, :] - 2 * products
    found[~np.isfinite(found)] = np.inf
    np.fill_diagonal(found, 0.0)
    squared: Array = np.maximum(found, 0.0)
    return squared


def inner_products(spec: ModelSpec, models: Sequence[Model], coefficients: Array) -> Array:
    """Of all pairs ``x_i - o``, with the origin ``o = Σ cᵢ xᵢ``; models × models, not finite on overflow."""
    products = np.zeros((len(models), len(models)))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in float_blocks(spec, models):
            away = np.subtract(rows, coefficients @ rows, out=rows)
            products += away @ away.T
    return products


def to_model(spec: ModelSpec, model: Model, other: Model) -> float:
    """Distance (not squared) of two models; infinite where it overflows float64."""
    with np.errstate(over="ignore"):
        squared = [fused.squared_distance(model.run(run), other.run(run)) for run in float_runs(spec)]
    return math.sqrt(sum(squared))
