"""A whole federation in one process: the same roles, on the memory transport and a SQLite store. No server is
needed. With a ``World``, learners differ in speed and link, and some of them fail.
"""

from broker_fl.roles.learner import LazyLearners
from broker_fl.simulation.federation import Federation
from broker_fl.world import Choices, Each, Fail, Kill, Links, LogUniform, Profile, Same, Spread, World

__all__ = [
    "Choices",
    "Each",
    "Fail",
    "Federation",
    "Kill",
    "LazyLearners",
    "Links",
    "LogUniform",
    "Profile",
    "Same",
    "Spread",
    "World",
]
