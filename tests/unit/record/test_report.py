"""The report page: whole, self-contained, and safe whatever learners call themselves."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from broker_fl.errors import SettingError, StoreUnavailable
from broker_fl.record.history import History
from broker_fl.record.report import Run, render, write_report
from broker_fl.record.runfolder import RunFolder
from broker_fl.wire import events as ev
from broker_fl.wire.job import JobSpec
from tests.unit.record.asynchronous import asynchronous_events, paced_events
from tests.unit.record.events import fake_events

EVENTS = fake_events(num_rounds=14)
LATE = {
    f"broker_fl.record.{name}"
    for name in ("plots", "drawing", "curves", "bars", "gantt", "gallery", "per_learner")
}
VOID = {"meta", "br", "input", "link", "img", "hr", "wbr"}


class Page(HTMLParser):
    """Elements, ids and references of a page; it must be well-formed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            self.references.update(re.findall(r"url\(#([^)]+)\)", value or ""))
            if name.endswith("href"):
                assert value
                assert value.startswith("#"), f"{tag} refers to {value}"
                self.references.add(value[1:])


def run_of(events: list[ev.Event], name: str = "run") -> Run:
    return Run(name=name, history=History.of(events))


@pytest.fixture(scope="module")
def html() -> str:
    return render([run_of(EVENTS)])


def test_the_page_is_well_formed_and_its_ids_are_unique(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)


def test_the_page_needs_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "image"}
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in html


def test_the_page_says_what_matters(html: str) -> None:
    text = Page(html).text
    for words in (
        "digits-7f3a",
        "done",
        "14 rounds are done",
        "accuracy",
        "CUDA out of memory",
        "learning_rate",
    ):
        assert words in text
    for words in ("loss", "site-03", "101\N{NARROW NO-BREAK SPACE}770 parameters", "median round"):
        assert words in text


def test_drawings_take_their_colours_and_font_from_the_page(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 2 * (6 + 1 + 3), "the course, the map, and three timelines, each in two sizes"
    assert not [colour for drawing in drawings for colour in re.findall(r"(?:fill|stroke): #\w+", drawing)]
    assert not [drawing for drawing in drawings if "font-family" in drawing]


def test_the_timeline_marks_stragglers_and_failures() -> None:
    page = Page(render([run_of(fake_events(num_rounds=1))])).text
    assert "◆ late" in page


def titles(html: str) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>", html)


def test_only_what_applies_to_a_run_is_drawn() -> None:
    rounds, versions = titles(render([run_of(EVENTS)])), titles(render([run_of(asynchronous_events())]))
    assert {"What became of the tasks", "Contribution of learners"} <= set(rounds) & set(versions)
    assert "Where the time of a round goes" in set(rounds) - set(versions)
    assert {"Staleness of updates", "Time from version to version", "Workload: epochs", "Memory"} <= (
        set(versions) - set(rounds)
    )
    assert "Time of the task, by learner and round" in set(rounds) - set(versions)
    assert {"Workload: epochs", "Memory"} <= set(titles(render([run_of(paced_events())])))


def test_people_count_from_one() -> None:
    page = Page(render([run_of(EVENTS)]))
    assert "first round: 1" in page.text
    assert "last round: 14" in page.text
    rows = re.findall(r"<tr><td class=\"text\">(\w+)", render([run_of(EVENTS)]))
    assert rows[:15] == [*map(str, range(1, 15)), "evaluation"]


def test_an_asynchronous_run_has_a_window_of_time_and_a_table_of_versions() -> None:
    page = Page(render([run_of(asynchronous_events(num_learners=30, num_versions=300))]))
    for words in ("middle", "beginning", "end", "versions; at most", "median ", "Versions"):
        assert words in page.text
    assert "Rounds" not in page.text
    assert "◆" in page.text


def table(html: str, title: str) -> list[list[str]]:
    part = html[html.index(f"<h2>{title}</h2>") :]
    part = part[: part.index("</table>")]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", part)]


@pytest.mark.filterwarnings("error")
def test_training_is_never_shown_in_the_place_of_an_evaluation() -> None:
    events = asynchronous_events(num_versions=3)
    committed = next(index for index, event in enumerate(events) if isinstance(event, ev.VersionCommitted))
    about: Any = {"job": "async-1", "round": 1, "version": 0}
    evaluated = ev.VersionEvaluated(**about, metrics={"loss": 9.0}, num_learners=1, num_examples=1)
    page = render([run_of([*events[: committed + 1], evaluated])])
    head, initial, first = table(page, "Versions")
    assert head[-2:] == ["loss", "training loss"]
    assert (initial[-2], initial[-1], first[-2]) == ("9", "–", "–")
    assert first[-1] not in ("–", "9")


def test_a_run_that_failed_says_what_was_asked_for_and_who_was_there() -> None:
    events: list[ev.Event] = [ev.RoundStarted(job="j", round=0, version=0, cohort=("a", "b"))]
    for attempt in range(3):
        about: Any = {"job": "j", "round": 0, "attempt": attempt}
        sent: Any = {"version": 0, "learners": ("a", "b"), "num_bytes": 2, "num_messages": 2, "send_s": 0.1}
        events.append(ev.TaskSent(**about, **sent))
        for name in ("a", "b"):
            events.append(ev.TaskAccepted(job="j", round=0, learner=name, receive_s=0.1))
            events.append(ev.TaskFailed(job="j", round=0, learner=name, reason="no data"))
    page = render([run_of(events)])
    assert "of 6 asked for" in page
    head, *rows = table(page, "Learners")
    assert [row[head.index("presence")] for row in rows] == ["present", "present"]


def test_a_learner_that_fails_like_another_shares_its_line() -> None:
    failures = [
        ev.TaskFailed(job="digits-7f3a", round=2, learner=f"site-{index:02d}", reason="no file data.csv")
        for index in range(6)
    ]
    text = Page(render([run_of([*EVENTS[:-1], *failures])])).text
    assert text.count("no file data.csv") == 1
    assert "site-00, site-01, site-02 and 3 more" in text


def test_protocols_are_compared_over_versions_and_over_time() -> None:
    page = Page(render([run_of(EVENTS, "rounds"), run_of(asynchronous_events(), "no-rounds")]))
    for words in ("asynchronous", "fedasync", "accuracy over time", "Time from version to version"):
        assert words in page.text


HOSTILE = [
    "<script>alert(1)</script>",
    "</svg></div><img src=x onerror=alert(1)>",
    '" onload="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    r"$\frac{1}{$",
    '#0a5fff url(#x) href="#y" id="z"',
    "a\x00b\x1b[31m\u202egnp.exe\ud7ff",
    "漢字 " * 30,
]


def test_what_learners_say_is_shown_as_text() -> None:
    about: Any = {"job": "digits-7f3a", "round": 14}
    named = {words[:128]: 1.0 for words in HOSTILE}
    notes: Any = dict(zip("abcdefgh", HOSTILE, strict=True))
    events = [event for event in EVENTS if not isinstance(event, ev.JobFinished)]
    events += [ev.TaskFailed(**about, learner="site-01", reason=words) for words in HOSTILE]
    events += [
        ev.LearnerJoined(job="digits-7f3a", learner="site-01", attributes=notes),
        ev.TaskFinished(**about, learner="site-99", evaluation=named),
        ev.VersionEvaluated(**about, version=14, metrics=named, num_learners=1, num_examples=1),
        ev.JobFinished(
            job="digits-7f3a", state="failed", reason=" ".join(HOSTILE), version=1, rounds=1, duration_s=1
        ),
    ]
    settings = {words: {words: words} for words in HOSTILE}
    page = Page(render([Run(name=" ".join(HOSTILE), history=History.of(events), settings=settings)]))
    assert not page.tags & {"script", "img"}
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not set(page.text) & set("\x00\x1b\u202e")
    assert "{{ 7 * 7 }}{% raw %}" in page.text


def test_several_runs_are_laid_over_one_another() -> None:
    runs = [
        run_of(fake_events(num_rounds=3, seed=seed, job=f"job-{seed}"), f"run-{seed}") for seed in range(3)
    ]
    page = Page(render(runs))
    assert "3 runs" in page.text
    assert "accuracy over time" in page.text
    assert all(f"run-{seed}" in page.text for seed in range(3))
    assert len(page.ids) == len(set(page.ids))


def test_a_run_that_has_only_begun_has_a_report() -> None:
    for length in (0, 2, 13, 20):
        assert "broker_fl report" in Page(render([run_of(EVENTS[:length])])).text


def test_metrics_that_diverge_are_drawn_as_far_as_they_can_be() -> None:
    values = [1.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, 2.0]
    events: list[ev.Event] = []
    for number, value in enumerate(values):
        about: Any = {"job": "j", "round": number}
        events += [
            ev.RoundStarted(**about, version=number, cohort=("a",)),
            ev.TaskFinished(
                **about,
                learner="a",
                evaluation={"loss": value, "bad": math.nan},
                metrics={"loss": value},
            ),
            ev.VersionEvaluated(
                **about,
                version=number,
                metrics={"loss": value, "bad": math.nan},
                num_learners=1,
                num_examples=1,
            ),
        ]
    assert "no finite values" in Page(render([run_of(events)])).text


def test_a_large_job_has_a_page_that_a_browser_can_hold() -> None:
    html = render([run_of(fake_events(num_learners=510, num_rounds=63))])
    assert len(html) < 1_000_000
    assert "40 of 510 learners" in html
    assert "500 of 510 learners" in html


def test_a_long_asynchronous_job_has_a_page_that_a_browser_can_hold() -> None:
    html = render([run_of(asynchronous_events(num_learners=12, num_versions=4_000))])
    assert len(html) < 2_000_000
    assert "500 of 4\N{NARROW NO-BREAK SPACE}001 versions, the last" in html


def test_the_same_events_make_the_same_drawings(html: str) -> None:
    again = render([run_of(EVENTS)])
    assert re.findall(r"<svg.*?</svg>", again, re.DOTALL) == re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def test_a_report_is_written_from_run_folders(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    with folder:
        for event in EVENTS:
            folder.append(event)
    folder.write_settings(JobSpec(name="digits"), app="my_app.py:make_learner", num_learners=10)
    path = write_report([folder], folder.path / "report.html")
    text = Page(path.read_text()).text
    assert "my_app.py:make_learner" in text
    assert not list(folder.path.glob("*.part"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"no-folder/report\.html cannot be written: No such file"):
        write_report([run_of(EVENTS)], tmp_path / "no-folder" / "report.html")


def test_a_report_needs_a_run() -> None:
    with pytest.raises(SettingError, match="at least one run"):
        render([])


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_extra_the_error_says_how_to_get_it(
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name in LATE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SettingError, match=rf"needs {missing}.*pip install 'broker-fl\[report\]'"):
        render([run_of(EVENTS)])
