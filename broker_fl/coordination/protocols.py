"""Which state machine runs a job.

To add a protocol: its settings in ``wire/protocols.py``, a subclass of ``job.Job`` here, its case below.
"""

from __future__ import annotations

from broker_fl.coordination.asynchronous import AsynchronousJob
from broker_fl.coordination.job import Job
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.rounds import RoundsJob
from broker_fl.coordination.state import JobState
from broker_fl.wire.protocols import Asynchronous


def make_job(state: JobState, members: Membership) -> Job:
    """The state machine of the protocol that the job's settings name; ``members`` is read, never changed."""
    if isinstance(state.spec.protocol, Asynchronous):
        return AsynchronousJob(state, members, state.spec.protocol)
    return RoundsJob(state, members, state.spec.protocol)
