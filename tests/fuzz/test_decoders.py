"""A few thousand inputs for each decoder, and all that ever found something. A million: ``-m tests.fuzz``."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.errors import FrameRefused
from tests.fuzz.__main__ import RECORD
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import IS_MSGPACK, TARGETS, Target, kept

MAX_PEAK_BYTES = 24 << 20
"""Of Python and NumPy for one input of a few thousand bytes; its decoder may make room for 1 MiB."""


@pytest.mark.parametrize("name", TARGETS)
def test_what_seeds_the_fuzzing_is_valid(name: str) -> None:
    target = TARGETS[name]
    assert all(target.run(seed) for seed in target.seeds()), "else most inputs are refused at once"


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_stays_mended(name: str) -> None:
    for data in kept(name):
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(draw=st.randoms(use_true_random=False))
def test_a_decoder_raises_only_what_is_documented(name: str, draw: random.Random) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    target.run(mutated(draw.choice(seeds), [*seeds, *target.words], draw, is_msgpack=name in IS_MSGPACK))


@pytest.mark.parametrize("name", TARGETS)
def test_memory_is_bounded_whatever_an_input_claims(name: str) -> None:
    target, draw = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    for seed in seeds:
        target.run(seed)  # what is made once is made now
    tracemalloc.start()
    try:
        for _ in range(300):
            data = mutated(draw.choice(seeds), [*seeds, *target.words], draw, is_msgpack=name in IS_MSGPACK)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            target.run(data)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < MAX_PEAK_BYTES + 60 * len(data), data[:200]
    finally:
        tracemalloc.stop()


def test_the_fuzzing_would_notice() -> None:
    def leaky(data: bytes) -> None:
        if b"\xff" in data:
            raise IndexError("not documented")
        raise FrameRefused("documented")

    target, draw = Target(leaky, lambda: [b"abc"]), random.Random(1)
    inputs = [mutated(b"abc", [b"abc"], draw, is_msgpack=False) for _ in range(2_000)]
    with pytest.raises(IndexError):
        list(map(target.run, inputs))


def test_the_docs_have_what_is_on_record() -> None:
    assert RECORD.is_written(), "python -m tests.fuzz --record writes both"
