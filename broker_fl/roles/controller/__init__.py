"""The controller: hears learners and drivers, runs jobs, and keeps their state in the store.

``controller.py`` is its life: standby, lease, end. While it holds the lease, ``leadership.py`` connects what
comes in to who handles it:

- ``intake.py``: every message, before anybody handles it: who sent it, how many it may send, dead letters.
- ``reports.py``: what learners and groups report; ``attendance.py``: who of them is there.
- ``results.py``: results and updates, on their way to the job that waits for them.
- ``requests/``: what drivers ask for.
- ``jobs.py``: all jobs; ``job/``: one job at work.

Threads: one decides (``Loop``), one publishes small messages, one publishes models (``Sender``), one holds
the lease; the transport has its own. All state belongs to the deciding thread.
"""

from broker_fl.roles.controller.controller import Controller
from broker_fl.roles.controller.settings import ControllerSettings

__all__ = ["Controller", "ControllerSettings"]
