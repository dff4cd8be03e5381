"""The learner's side: takes tasks from its mailbox, works on them, sends results back.

- ``host.py``: one process of learners; ``mailboxes.py``: what it reads; ``outbox.py``: what is sent.
- ``seats.py``: learners that are each by themselves; ``turns.py``: whose turn it is; ``tasks.py``: a task in
  the hands of one of them; ``variates.py``, ``residuals.py``: what it keeps between tasks.
- ``group.py``: learners that send one sum; ``group_task.py``: a task in their hands; ``shares.py``: the sums.
- ``policy.py``: what the site allows.
"""

from broker_fl.roles.learner.host import DEFAULT_HEARTBEAT_S, LearnerHost
from broker_fl.roles.learner.lazy import LazyLearners
from broker_fl.roles.learner.settings import SOFTWARE, LearnerSettings

__all__ = ["DEFAULT_HEARTBEAT_S", "SOFTWARE", "LazyLearners", "LearnerHost", "LearnerSettings"]
