"""What a simulated federation is like: how fast learners and links are, and what fails; from one seed.

As the table ``[simulation]`` of a job file, for ``broker-fl run``::

    [simulation]
    seed = 1
    step_s = 0.01                                            # of a learner whose speed is 1
    speeds = { name = "spread", low = 0.1, high = 1.0 }      # the slowest takes ten times as long
    links = { down_bytes_s = 1e6, up_bytes_s = { name = "log_uniform", low = 1e4, high = 1e6 } }
    faults = [
        { name = "kill", fraction = 0.3, at_round = 3 },
        { name = "fail", probability = 0.05 },
    ]

In Python: ``World(speeds=Spread(low=0.1, high=1.0), faults=[Kill(fraction=0.3, at_round=3)], …)``.

These are settings, and what is drawn from them for each learner; ``simulation`` does what they say.
"""

from broker_fl.world.draws import Choices, Each, LogUniform, Same, Spread
from broker_fl.world.faults import Fail, Kill
from broker_fl.world.world import Links, Profile, World

__all__ = [
    "Choices",
    "Each",
    "Fail",
    "Kill",
    "Links",
    "LogUniform",
    "Profile",
    "Same",
    "Spread",
    "World",
]
