"""Topic patterns."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from broker_fl.transports.memory.routing import topic_matches

patterns = st.lists(st.sampled_from(["a", "b", "*", "#"]), max_size=5)
keys = st.lists(st.sampled_from(["a", "b", ""]), max_size=6)


@given(pattern=patterns, words=keys)
@example(pattern=["#"], words=[])
@example(pattern=["*"], words=[""])
def test_a_pattern_matches_what_the_same_regular_expression_matches(
    pattern: list[str], words: list[str]
) -> None:
    parts = {"*": "(?:[^.]*;)", "#": "(?:[^.]*;)*"}
    expression = "".join(parts.get(word, f"{word};") for word in pattern).replace("[^.]", "[^;]")
    expected = re.fullmatch(expression, "".join(f"{word};" for word in words)) is not None
    assert topic_matches(pattern, words) == expected
