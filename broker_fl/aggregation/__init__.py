"""Aggregation: pure arithmetic, one rule per file, each citing its paper.

To add a rule: its settings as a class in ``wire/rules.py``, a file here, and its name in ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker_fl.aggregation import fedopt
from broker_fl.aggregation.bulyan import Bulyan
from broker_fl.aggregation.coordinate_wise import Median, TrimmedMean
from broker_fl.aggregation.fedasync import FedAsync
from broker_fl.aggregation.fedavg import FedAvg
from broker_fl.aggregation.fedbuff import FedBuff
from broker_fl.aggregation.fednova import FedNova
from broker_fl.aggregation.fedopt import FedOpt
from broker_fl.aggregation.fedrec import FedRec
from broker_fl.aggregation.geometric_median import GeometricMedian
from broker_fl.aggregation.krum import Krum
from broker_fl.aggregation.norm_clipping import NormClipping
from broker_fl.aggregation.qfedavg import QFedAvg
from broker_fl.aggregation.scaffold import Scaffold
from broker_fl.aggregation.tree_bagging import TreeBagging
from broker_fl.errors import AppError
from broker_fl.interfaces import Extensions, Rule
from broker_fl.wire.rules import OwnRule

RULES: dict[str, Callable[[Any], Rule]] = {
    "fedavg": lambda s: FedAvg(s.weighting),
    "fedprox": lambda s: FedAvg(s.weighting),
    "fedavgm": lambda s: FedOpt(fedopt.fedavgm(s.learning_rate, s.momentum), s.weighting),
    "fedadagrad": lambda s: FedOpt(fedopt.fedadagrad(s.learning_rate, s.beta1, s.tau), s.weighting),
    "fedadam": lambda s: FedOpt(fedopt.fedadam(s.learning_rate, s.beta1, s.beta2, s.tau), s.weighting),
    "fedyogi": lambda s: FedOpt(fedopt.fedyogi(s.learning_rate, s.beta1, s.beta2, s.tau), s.weighting),
    "fedasync": FedAsync,
    "fedbuff": FedBuff,
    "fedrec": FedRec,
    "fednova": lambda s: FedNova(s.momentum),
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": Krum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "norm_clipping": NormClipping,
    "scaffold": Scaffold,
    "qfedavg": lambda s: QFedAvg(q=s.q, learning_rate=s.learning_rate, weighting=s.weighting),
    "tree_bagging": lambda s: TreeBagging(),
}
"""Name of a rule → how it is made from its settings in ``wire/rules.py``."""


def make_rule(settings: Any, extensions: Extensions | None = None) -> Rule:
    """The rule that a job's ``rule`` settings name; the user's own are among the ``extensions``.

    Raises:
        AppError: it is the user's own, and there are no extensions.
    """
    if not isinstance(settings, OwnRule):
        return RULES[settings.name](settings)
    if extensions is None:
        raise AppError(f"there is no rule {settings.rule!r}: no app file with own rules was given")
    return extensions.rule(settings.rule, settings.settings)
