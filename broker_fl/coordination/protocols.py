"""Which state machine runs a job.

To add a protocol: its settings in ``wire/protocols.py``, a subclass of ``job.Job`` here, its case below.
"""

from __future__ import annotations

from broker_fl.coordination.asynchronous import AsynchronousJob
from broker_fl.coordination.job import Job
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.rounds import RoundsJob
from broker_fl.coordination.state import JobState
from broker_fl.interfaces import Extensions
from broker_fl.wire.protocols import Asynchronous


def make_job(state: JobState, members: Membership, extensions: Extensions | None = None) -> Job:
    """The state machine of the protocol that the job's settings name.

    Args:
        state: of the job; the state machine changes it.
        members: who is there; read, never changed.
        extensions: the classes of users, where one may be the job's selector.
    """
    if isinstance(state.spec.protocol, Asynchronous):
        return AsynchronousJob(state, members, state.spec.protocol)
    return RoundsJob(state, members, state.spec.protocol, extensions)
