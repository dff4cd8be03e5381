"""What drivers ask of a controller, and the answers.

``handling.py`` says who carries out which kind of request: ``submissions.py`` (jobs that are to begin),
``control.py`` (what changes a job that is there), ``reading.py`` (what changes nothing), ``download.py``
(models). ``desk.py`` is what they answer with.
"""

from broker_fl.roles.controller.requests.handling import Requests

__all__ = ["Requests"]
