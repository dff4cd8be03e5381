"""The driver: submits jobs, follows them, and reads what came of them.

``driver.py`` is the Python API, ``job.py`` one job of it. ``connection.py`` is the queue of answers, and who
waits for which; ``answers.py``, ``download.py`` and ``watch.py`` wait: for replies, a model, events.
"""

from broker_fl.roles.driver.driver import Driver
from broker_fl.roles.driver.job import Job

__all__ = ["Driver", "Job"]
