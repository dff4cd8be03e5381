"""The live view: one screen on a terminal, a line a round elsewhere, and nothing of it is markup."""

from __future__ import annotations

import io
import math
import re
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from broker_fl.record.history import History
from broker_fl.record.live import LiveView, sparkline
from broker_fl.record.text import seconds
from broker_fl.wire import events as ev
from tests.unit.record.asynchronous import asynchronous_events, paced_events
from tests.unit.record.events import START_S, FakeJob, fake_events


def terminal(width: int = 100, height: int = 30) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        height=height,
        color_system="256",
        _environ={"TERM": "xterm"},
    )


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(events: list[ev.Event]) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    with LiveView(History(), console) as view:
        show_all(view, events)
    return output(console).splitlines()


def show_all(view: LiveView, events: list[ev.Event]) -> None:
    for event in events:
        view.show(event)


def frame(view: LiveView, width: int = 100) -> str:
    """One frame as text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(view._screen())
    return output(console)


def test_without_a_terminal_there_is_a_line_for_each_round() -> None:
    lines = plain(fake_events())
    assert sum(line.startswith("round ") for line in lines) == 20
    assert lines[0] == "job digits-7f3a (digits): submitted, 101\N{NARROW NO-BREAK SPACE}770 parameters"
    assert "round 1 of 20: 1.18 s, 9 of 10 learners, 1 late; accuracy 0.1000, loss 2.420" in lines
    assert "failed site-05 in round 5: RuntimeError: CUDA out of memory" in lines
    assert lines[-1].startswith("job digits-7f3a: done after 20.4 s: 20 rounds are done")


def test_a_log_file_has_no_control_characters_and_no_wrapped_lines() -> None:
    text = "\n".join(plain(fake_events()))
    assert "\x1b" not in text
    assert "\r" not in text
    assert any(len(line) > 80 for line in plain([failed("x" * 500)]))


def failed(reason: str, learner: str = "a", number: int = 0) -> ev.Event:
    return ev.TaskFailed(job="j", round=number, learner=learner, reason=reason, time_s=START_S)


COMMITTED = ev.VersionCommitted(
    job="j",
    round=0,
    version=1,
    digest="",
    contributors=("x",),
    total_weight=1,
    round_s=1,
    aggregate_s=0,
    store_s=0,
)


def test_many_failures_of_a_round_are_counted_instead_of_listed() -> None:
    failures = [failed(f"no file {index}", f"l{index}") for index in range(1_000)]
    lines = plain([*failures, COMMITTED, failed("again", "l1", 1)])
    assert len(lines) == 5 + 1 + 1 + 1
    assert lines[5] == "and 995 more incidents"
    assert lines[-1] == "failed l1 in round 2: again"


def test_of_many_that_are_lost_it_is_said_how_many_and_nothing_else_is_swallowed() -> None:
    lost = [
        ev.LearnerLost(job="j", learner=f"l{index}", silent_s=3 + index / 7, time_s=START_S)
        for index in range(10)
    ]
    failures = [failed(f"no file {index}", f"l{index}") for index in range(7)]
    retried = ev.RoundRetried(job="j", round=0, attempt=1, reason="2 of 3 are there", replacements=())
    waiting = [
        ev.JobWaiting(job="j", reason=f"{index} of 3 learners are there", num_learners=index, num_needed=3)
        for index in range(2)
    ]
    begun = ev.RoundStarted(job="j", round=0, version=0, cohort=("a",))
    lines = plain([*lost, *waiting, begun, *waiting, begun, *failures, retried, *waiting, COMMITTED])
    assert lines[:3] == [
        "lost l0: silent for 3 s",
        "lost l1, l2, l3 and 6 more: for the same reason",
        "waiting: 0 of 3 learners are there",
    ]
    assert lines[3] == lines[2], "after a round that nothing went wrong in"
    assert lines[9:-1] == [
        "and 2 more incidents",
        "retried in round 1: 2 of 3 are there",
        "waiting: 0 of 3 learners are there",
    ]


def failing_job(why: str) -> list[ev.Event]:
    """Three learners fail in each of three attempts, for one reason, as the controller tells it."""
    named = f"0 delivered, 3 were needed; 3 failed (a, b, c: {why})"
    events: list[ev.Event] = []
    for attempt in range(1, 4):
        events += [failed(why, learner) for learner in "abc"]
        if attempt < 3:
            events.append(ev.RoundRetried(job="j", round=0, attempt=attempt, reason=named, replacements=()))
    end = {
        "state": "failed",
        "reason": f"round 1 missed its quorum 3 times: {named}",
        "version": 0,
        "rounds": 0,
    }
    return [*events, ev.JobFinished.model_validate({"job": "j", "duration_s": 1, "time_s": START_S, **end})]


def test_one_reason_of_many_failures_is_told_first_and_last() -> None:
    why = "KeyError: 'mean' (my_app.py:18)"
    lines = plain(failing_job(why))
    assert sum(why in line for line in lines) == 2
    assert lines[0] == f"failed a in round 1: {why}"
    assert lines[2] == "retried in round 1: 0 delivered, 3 were needed; 3 failed (a, b, c: as above)"
    assert lines[3] == "failed a, b, c in round 1: for the same reason"
    assert lines[-1].endswith(f"3 failed (a, b, c: {why})")
    assert plain([failed(why), COMMITTED, failed(why, number=1)])[-1] == f"failed a in round 2: {why}"


@pytest.mark.parametrize("num_words", [5, 200])
def test_why_a_run_failed_is_whole_below_the_view(num_words: int) -> None:
    why = " ".join(f"word-{number}" for number in range(num_words))
    console = terminal(80)
    with LiveView(History(), console) as view:
        show_all(view, failing_job(why))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output(console)).rpartition("failed: round 1")[2]
    assert f"missed its quorum 3 times: 0 delivered, 3 were needed; 3 failed (a, b, c: {why})" == " ".join(
        shown.split()
    )
    assert max(map(len, shown.splitlines())) <= 80


def test_those_that_are_late_in_a_round_are_one_line() -> None:
    late = [ev.TaskLate(job="j", round=0, learner=f"l{index}", reason="10 s are over") for index in range(9)]
    lines = plain([*late, COMMITTED])
    assert lines[0] == "late l0, l1, l2 and 6 more in round 1: 10 s are over"
    assert lines[1].startswith("round 1: 1.00 s, 0 of 0 learners, 9 late")
    assert len(lines) == 2


def test_an_asynchronous_version_counts_what_is_new_and_names_the_version_that_was_evaluated() -> None:
    events: list[ev.Event] = []
    for event in asynchronous_events(num_versions=120):
        events.append(event)
        if isinstance(event, ev.VersionCommitted) and event.version > 2:
            about: Any = {"job": event.job, "round": event.version, "version": event.version - 1}
            metrics = {"accuracy": event.version / 1000}
            events.append(ev.VersionEvaluated(**about, metrics=metrics, num_learners=3, num_examples=9))
    events = [event.model_copy(update={"sequence": 0}) for event in events]
    lines = [line for line in plain(events) if line.startswith("version ")]
    assert lines[0].endswith("; loss –"), "the loss of training is not the version's"
    assert lines[4].endswith("; accuracy 0.0040 of versions up to 3, by 3 learners")
    assert History.of(events).versions[3].evaluation == {"accuracy": 0.004}
    assert all(": 1 update" in line for line in lines[:99])
    assert sum("1 failed" in line for line in lines) == 1
    assert ": 10 updates" in lines[100]
    assert "since version 100" in lines[100]


@pytest.mark.parametrize("reason", ["[bold red]x[/]", "[/nonsense]", "a\x1b[2Jb\rc\nd", "{0} %s"])
def test_reasons_are_neither_markup_nor_control_codes(reason: str) -> None:
    (line,) = plain([failed(reason)])
    assert "\x1b" not in line
    assert line.endswith(reason.translate({27: "\N{REPLACEMENT CHARACTER}", 13: " ", 10: " "}))
    console = terminal()
    with LiveView(History(), console) as view:
        view.show(failed(reason))
    assert "\x1b[2Jb" not in output(console)


def test_a_terminal_shows_the_state_the_round_and_the_metrics() -> None:
    view = LiveView(History(), terminal(), clock=lambda: 0.0)
    for event in fake_events():
        view.history.add(event)
    text = frame(view)
    for words in (
        "digits-7f3a  done  20.4 s",
        "20 of 20",
        "accuracy 0.9499 ▁",
        "finished 10",
        "late  round 19  site-03",
        "↓",
        "↑",
    ):
        assert words in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_thousand_learners_stay_one_screen_at_every_moment(width: int) -> None:
    view = LiveView(History(), terminal(width))
    for index, event in enumerate(FakeJob(num_learners=1_000, num_rounds=2).events()):
        view.history.add(event)
        if index % 400 == 0:
            lines = frame(view, width).splitlines()
            assert len(lines) <= 16
            assert max(map(len, lines)) <= width
    for index in range(100):
        view.history.add(failed("x" * 300, f"learner-{index}").model_copy(update={"job": "digits-7f3a"}))
    assert len(frame(view, width).splitlines()) <= 16


def test_elapsed_time_goes_on_between_events_and_ends_with_the_job() -> None:
    now = [100.0]
    view = LiveView(History(), terminal(), clock=lambda: now[0])
    events = fake_events(num_learners=3, num_rounds=1)
    view.show(events[0])
    now[0] += 42
    assert "42.0 s" in frame(view)
    show_all(view, events[1:])
    now[0] += 1_000
    assert view.history.duration_s is not None
    assert seconds(view.history.duration_s) in frame(view).splitlines()[0]


def test_the_terminal_is_given_back_even_after_an_error() -> None:
    console = terminal()
    with pytest.raises(AttributeError), LiveView(History(), console) as view:
        view.show(None)  # type: ignore[arg-type]
    text = output(console)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert text.endswith(("\n", "\x1b[?25h"))


def test_no_color_is_heeded() -> None:
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        width=100,
        _environ={"TERM": "xterm-256color", "NO_COLOR": "1"},
    )
    with LiveView(History(), console) as view:
        show_all(view, fake_events(num_rounds=3))
    assert "\x1b[31m" not in output(console)
    assert "38;5" not in output(console)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "dumb"})
    with LiveView(History(), console) as view:
        show_all(view, fake_events(num_rounds=3))
    assert "round 3 of 3" in output(console)
    assert "\x1b[?25l" not in output(console)


def test_events_may_come_from_several_threads_while_frames_are_drawn() -> None:
    events = fake_events(num_learners=100, num_rounds=5)
    history = History()
    with LiveView(history, terminal()) as view:
        threads = [
            threading.Thread(target=show_all, args=(view, part), daemon=True)
            for part in (events, events[::2], events[1::2])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert history.counts == History.of(events).counts


def test_events_that_come_twice_are_told_once() -> None:
    events = fake_events(num_rounds=2)
    assert plain([event for event in events for _ in range(2)]) == plain(events)


@given(st.lists(st.floats(), max_size=60))
@settings(deadline=None)
def test_a_sparkline_has_a_character_for_each_value(values: list[float]) -> None:
    line = sparkline(values)
    finite = [value for value in values if math.isfinite(value)]
    assert len(line) == (len(values) if finite else 0)
    if len(set(finite)) > 1 and max(finite) / 2 - min(finite) / 2 > 0:
        assert line[values.index(max(finite))] == "█"
        assert line[values.index(min(finite))] == "▁"


def view_of(events: list[ev.Event]) -> str:
    view = LiveView(History(), terminal(), clock=lambda: 0.0)
    for event in events:
        view.history.add(event)
    return frame(view)


def test_an_asynchronous_job_is_shown_by_versions_and_updates() -> None:
    events = asynchronous_events()
    text = view_of(events[: len(events) // 2])
    for words in ("versions", "of 40", "learners at work", "folded", "staleness", "epochs 1 to 3, mean"):
        assert words in text
    assert "round" not in text
    assert "refused  version 0  site-02" in view_of(events)


def test_the_log_of_a_long_asynchronous_job_stays_short() -> None:
    lines = [line for line in plain(asynchronous_events(num_versions=300)) if line.startswith("version ")]
    assert [line.split()[1] for line in lines] == [str(n) for n in (*range(1, 100), *range(100, 301, 10))]
    assert " of 300 after " in lines[0]
    assert "staleness" in lines[0]


def test_a_paused_job_says_so_and_who_still_works() -> None:
    events = fake_events(num_learners=3, num_rounds=1)
    begun = [event for event in events if event.time_s <= START_S + 0.03][:7]
    text = view_of([*begun, ev.JobPaused(job="digits-7f3a", reason="a new driver for the GPUs")])
    assert "  paused" in text.splitlines()[0]
    assert "paused: a new driver for the GPUs (3 learners still at work)" in text


def test_a_stopped_job_has_no_running_round() -> None:
    events = fake_events(num_rounds=3)
    middle = next(i for i, e in enumerate(events) if isinstance(e, ev.RoundStarted) and e.round == 1)
    stopped = ev.JobFinished(
        job="digits-7f3a", state="stopped", reason="enough", version=1, rounds=1, duration_s=3.0
    )
    text = view_of([*events[: middle + 5], stopped])
    assert "stopped" in text
    assert "running" not in text
    assert "round 2  unfinished" in text


def test_what_fails_for_one_reason_is_said_once() -> None:
    events = [failed("no file data.csv", f"l{index}") for index in range(5)]
    assert view_of(events).count("no file data.csv") == 1
    assert "l0, l1, l2 and 2 more" in view_of(events)
    lines = plain(events)
    assert lines[0] == "failed l0 in round 1: no file data.csv"
    assert lines[1:] == ["failed l1, l2, l3 and 1 more in round 1: for the same reason"]


def test_before_the_first_event_it_is_said_what_is_waited_for() -> None:
    assert "waiting for the job's first event" in view_of([])


def test_pacing_is_shown_from_the_least_to_the_most() -> None:
    events = paced_events()
    last = next(i for i, e in enumerate(events) if isinstance(e, ev.RoundStarted) and e.round == 5)
    assert "epochs 1 to 6, mean 5.38" in view_of(events[: last + 10])
