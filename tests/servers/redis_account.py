"""The account that ``docs/security.md`` tells operators to give the controllers of a federation at Redis."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "security.md"
_ADVICE = re.compile(r"^ACL SETUSER broker_fl on >PASSWORD (.*?) +\(one line\)$", re.MULTILINE | re.DOTALL)


def documented_rules(federation: str) -> list[str]:
    """What it may do: the words after its password, for this federation."""
    (advice,) = _ADVICE.findall(_PAGE.read_text("utf-8"))
    assert "{hospitals}" in advice
    return [word.replace("{hospitals}", f"{{{federation}}}") for word in advice.split()]
