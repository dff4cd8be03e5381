"""Whether the learners of one process can ever do a job: nobody joins them later, so that a job which needs
more than there are would wait for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from broker_fl.coordination.selection.eligible import matches
from broker_fl.errors import SettingError
from broker_fl.interfaces import Learner, Member
from broker_fl.jobfile import make_spec
from broker_fl.roles.attributes import attributes_of
from broker_fl.roles.learner import SOFTWARE, LazyLearners
from broker_fl.wire.job import JobSpec
from broker_fl.wire.protocols import Asynchronous, Rounds
from broker_fl.world import Profile


def members_of(learners: Mapping[str, Learner]) -> list[Member]:
    """What a selector will see of them; of those that are made when they are worked on, no attributes."""
    if isinstance(learners, LazyLearners):
        return [Member(learner=name, attributes={}, software=SOFTWARE) for name in learners]
    return [
        Member(learner=name, attributes=attributes_of(name, learner, {}), software=SOFTWARE)
        for name, learner in learners.items()
    ]


def lower_min_learners(spec: JobSpec, members: Sequence[Member], profiles: Mapping[str, Profile]) -> JobSpec:
    """The job, with ``min_learners`` no more than those that it may choose and that are never killed.

    Raises:
        SettingError: so few contradict another setting.
    """
    lasting = [one for one in _matching(spec, members) if not _kills(one, profiles)]
    num = max(1, len(lasting))
    if spec.protocol.min_learners <= num:
        return spec
    fields = spec.model_dump()
    fields["protocol"]["min_learners"] = num
    return make_spec(fields, "the job's settings")


def check_can_run(spec: JobSpec, members: Sequence[Member], profiles: Mapping[str, Profile]) -> None:
    """Let a job pass that does not need more learners than there are.

    Raises:
        SettingError: it would wait for ever; names field, value and reason.
    """
    matching = _matching(spec, members)
    there = f"{len(members)} learners are there"
    if not matching:
        where = spec.selector.model_dump()["where"]
        told = sorted({name for member in members for name in member.attributes})
        raise SettingError(
            f"'selector.where' = {where} matches nobody: {there}, "
            + (f"which tell {', '.join(told)}" if told else "which tell no attributes")
        )
    if len(matching) < len(members):
        there = f"{len(matching)} of {len(members)} learners match 'selector.where'"
    for name, needed in _needed(spec).items():
        if needed > len(matching):
            raise SettingError(
                f"'protocol.{name}' = {needed} is more than can ever be there: {there}, and nobody else can "
                "join in this process"
            )
    _check_that_somebody_stays(spec, matching, profiles)


def _check_that_somebody_stays(
    spec: JobSpec, matching: Sequence[Member], profiles: Mapping[str, Profile]
) -> None:
    if spec.protocol.max_wait_s is not None or spec.termination.wall_clock_s is not None:
        return  # the job ends by itself, and says why
    end = math.inf if isinstance(spec.protocol, Asynchronous) else _num_rounds(spec)
    if all(_goes_for_good(one, profiles, end) for one in matching):
        raise SettingError(
            f"'simulation.faults' kill all {len(matching)} learners that could train, and none comes back: "
            "the job would wait for ever; hit fewer, or give 'back_at_round', 'back_after_s' or "
            "'protocol.max_wait_s'"
        )


def _matching(spec: JobSpec, members: Sequence[Member]) -> list[Member]:
    return [member for member in members if matches(spec.selector, member)]


def _needed(spec: JobSpec) -> dict[str, int]:
    """Learners that must be there at once, by the setting that says so."""
    needed = {"min_learners": spec.protocol.min_learners}
    if isinstance(spec.protocol, Rounds) and isinstance(spec.protocol.quorum, int):
        needed["quorum"] = spec.protocol.quorum
    return needed


def _kills(member: Member, profiles: Mapping[str, Profile]) -> bool:
    return member.learner in profiles and bool(profiles[member.learner].kills)


def _goes_for_good(member: Member, profiles: Mapping[str, Profile], end: float) -> bool:
    """Whether it dies before the round ``end``, or at some time, and stays away."""
    profile = profiles.get(member.learner)
    return profile is not None and any(
        kill.back_at_round is None and kill.back_after_s is None and (kill.at_round or 0) < end
        for kill in profile.kills
    )


def _num_rounds(spec: JobSpec) -> float:
    """How many rounds there are at most, with the one in which the last version is evaluated."""
    limits = (spec.termination.rounds, spec.termination.versions)
    return min((limit for limit in limits if limit is not None), default=math.inf) + spec.evaluate
