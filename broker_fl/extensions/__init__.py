"""A user's own rules and selectors: classes in an app file that jobs name (``rule = {name = "own", …}``).

They run inside the controller, so whatever they do wrong becomes an ``AppError`` that names their line.
"""

from broker_fl.extensions.classes import OwnClasses
from broker_fl.extensions.trial import try_own_code

__all__ = ["OwnClasses", "try_own_code"]
