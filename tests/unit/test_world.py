"""What is drawn from a world's settings, and which settings are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from broker_fl.errors import SettingError
from broker_fl.job_problems import problems
from broker_fl.world import Choices, Each, Fail, Kill, Links, LogUniform, Profile, Spread, World
from broker_fl.world.draws import distribution

RATES = st.floats(1e-3, 1e9)
DRAWS = st.one_of(
    RATES,
    st.tuples(RATES, RATES).map(lambda ends: LogUniform(low=min(ends), high=max(ends))),
    st.tuples(RATES, RATES).map(lambda ends: Spread(low=min(ends), high=max(ends))),
    st.lists(RATES, min_size=1, max_size=4).map(lambda values: Choices(values=values)),
)


def ids(num: int) -> list[str]:
    return [f"l{index:03d}" for index in range(num)]


@given(draw=DRAWS, num=st.integers(1, 30), seed=st.integers(0, 2**40))
def test_a_world_gives_each_learner_a_value_in_range_and_the_same_from_the_same_seed(
    draw: Any, num: int, seed: int
) -> None:
    world = World(speeds=draw, step_s=0.1, links=Links(up_bytes_s=draw), seed=seed)
    profiles = world.profiles(ids(num))
    assert profiles == World.model_validate(world.model_dump()).profiles(ids(num)[::-1])
    least, most = distribution(world.speeds).least_and_most()
    assert all(least <= profile.speed <= most for profile in profiles.values())
    assert [profile.down_bytes_s for profile in profiles.values()] == [None] * num
    assert all(profile.up_bytes_s for profile in profiles.values())


def test_another_seed_gives_other_values_and_other_links_leave_speeds_alone() -> None:
    def speeds(**settings: Any) -> list[float]:
        world = World(speeds=LogUniform(low=0.1, high=1.0), **settings)
        return [profile.speed for profile in world.profiles(ids(10)).values()]

    assert speeds(seed=1) != speeds(seed=2)
    assert speeds(seed=1) == speeds(seed=1, links=Links(latency_s=LogUniform(low=1, high=2)))


@given(num=st.integers(2, 30), seed=st.integers(0, 99))
def test_a_spread_takes_both_ends_and_equal_ratios(num: int, seed: int) -> None:
    profiles = World(speeds=Spread(low=0.1, high=1.0), seed=seed).profiles(ids(num))
    speeds = sorted(profile.speed for profile in profiles.values())
    np.testing.assert_allclose(speeds, np.logspace(-1, 0, num))


def test_choices_go_by_their_weights() -> None:
    world = World(speeds=Choices(values=[0.25, 1.0], weights=[1, 3]))
    slow = sum(profile.speed == 0.25 for profile in world.profiles(ids(4000)).values())
    assert 900 < slow < 1100


def killed(profiles: dict[str, Profile]) -> set[str]:
    return {name for name, profile in profiles.items() if profile.kills}


@given(num=st.integers(5, 44), seed=st.integers(0, 99))
def test_a_larger_share_of_the_same_seed_hits_those_of_a_smaller_one_too(num: int, seed: int) -> None:
    hit: set[str] = set()
    for share in (0.1, 0.2, 0.3, 0.4):
        world = World(faults=[Kill(fraction=share, at_round=2)], seed=seed)
        more = killed(world.profiles(ids(num)))
        assert hit <= more
        assert len(more) == int(share * num + 0.5)
        hit = more


def test_no_two_faults_kill_the_same_learner() -> None:
    world = World(faults=[Kill(count=3, at_round=1), Kill(count=3, at_round=2)])
    assert sorted(len(profile.kills) for profile in world.profiles(ids(6)).values()) == [1] * 6


def test_probabilities_of_failing_add_up() -> None:
    world = World(faults=[Fail(probability=0.5), Fail(probability=0.5, learners=["l000"])])
    assert [profile.fail_probability for profile in world.profiles(ids(2)).values()] == [0.75, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speeds": [0.1, 1.0]}, "simulation.speeds: 2 values were given for 3 learners"),
        ({"speeds": Each(values={"l000": 1.0})}, "simulation.speeds: learner 'l001' has no value"),
        (
            {"links": {"latency_s": Each(values={"l00": 1.0}, others=0.0)}},
            "simulation.links.latency_s: there is no learner 'l00': did you mean 'l00[0-2]'",
        ),
        (
            {"faults": [Kill(count=2, at_round=0), Kill(count=2, at_round=0)]},
            "simulation.faults, number 2: 2 learners are to be hit, and 1 are left",
        ),
    ],
)
def test_what_does_not_fit_the_learners_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        World(**settings).profiles(ids(3))


class Table(BaseModel):
    """As in a job file."""

    simulation: World


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"speed": 1}, "unknown field 'simulation.speed': did you mean 'speeds'?"),
        ({"speeds": {"name": "spred"}}, "simulation.speeds.name = 'spred' is not allowed: it must be one of"),
        ({"speeds": 2}, "'speeds' go up to 2, but real time cannot be shortened: give 'step_s', or speeds"),
        ({"speeds": 0}, "simulation.speeds: every value must be above 0"),
        ({"speeds": {"name": "spread", "low": 3, "high": 1}}, "'low' = 3 is above 'high' = 1"),
        ({"speeds": {"name": "choices", "values": [1], "weights": [1, 2]}}, "1 values, and 2 weights"),
        ({"speeds": []}, "'values' is empty"),
        ({"step_s": 0}, "simulation.step_s = 0 is not allowed: it must be above 0"),
        (
            {"links": {"down": 1}},
            "unknown field 'simulation.links.down': allowed are down_bytes_s, latency_s",
        ),
        ({"links": {"up_bytes_s": 0}}, "simulation.links.up_bytes_s: every value must be above 0"),
        ({"faults": [{"name": "kill", "at_round": 1}]}, "give one of 'learners', 'fraction' and 'count'"),
        ({"faults": [{"name": "kill", "count": 1}]}, "give either 'at_round' or 'at_s'"),
        (
            {"faults": [{"name": "kill", "count": 1, "at_round": 3, "back_at_round": 3}]},
            "'back_at_round' = 3 is not after 'at_round' = 3",
        ),
        ({"faults": [{"name": "kil"}]}, "simulation.faults.0.name = 'kil' is not allowed"),
        (
            {"faults": [{"name": "fail", "probability": 2}]},
            "probability = 2 is not allowed: it must be at most",
        ),
    ],
)
def test_a_mistake_is_told_in_words(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Table.model_validate({"simulation": settings})
    assert told in "; ".join(problems(caught.value, Table))
