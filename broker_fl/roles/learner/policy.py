"""What a site lets be done with its data: its policy file, held against each task before it is taken.

::

    [jobs]                                  # patterns as in a shell; what is not given may be anything
    names = ["mri-*"]
    drivers = ["anna-????????????"]         # an account's name and 12 random characters
    rules = ["fedavg", "fedprox"]
    protocols = ["synchronous"]

    [limits]
    max_epochs = 5                          # of a task, as it asks for and as training did
    max_steps = 10_000
    max_model_bytes = 500_000_000
    max_bytes_per_day = 20_000_000_000      # models that come and updates that go; days are those of UTC

    [privacy]
    min_cohort = 3                          # learners whose updates go into one version, at least
    aggregation = "none"                    # what the aggregation must hide; "none" demands nothing

The controller is told the reason of a refusal, and has no way around it. Names and the cohort's size are its
word; bytes, epochs and steps are counted here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from broker_fl.errors import SettingError, TaskDeclined
from broker_fl.interfaces import Learner, Metrics, TaskContext, Update
from broker_fl.job_problems import problems
from broker_fl.model import Arrays
from broker_fl.toml_file import read_toml
from broker_fl.wire.encodings import encoding
from broker_fl.wire.fields import Identifier, Positive
from broker_fl.wire.job import Patterns
from broker_fl.wire.messages import Task, Terms
from broker_fl.wire.settings import Above0, Setting

log = logging.getLogger(__name__)
_SAYS = {"names": "name", "drivers": "driver", "rules": "rule", "protocols": "protocol"}


class AllowedJobs(Setting):
    """Of which jobs tasks are taken; None: of all."""

    names: Patterns | None = None
    drivers: Patterns | None = None
    """Who submitted it."""
    rules: Patterns | None = None
    """Names of aggregation rules; of a rule of the user's own, its class."""
    protocols: Patterns | None = None


class Limits(Setting):
    """What a task may take; None: no limit."""

    max_epochs: Above0 | None = None
    """Parts of one, too. A task that names no ``epochs`` asks for what the site's own app does by itself."""
    max_steps: Positive | None = None
    max_model_bytes: Positive | None = None
    """In memory."""
    max_bytes_per_day: Positive | None = None
    """Of all learners of the process together; kept in a file, through restarts."""


class Privacy(Setting):
    """How much an update must be hidden."""

    min_cohort: Positive = 1
    """Learners whose updates go into one version, at least, whoever is lost or fails: of a job in rounds its
    quorum, which has to be a count.
    """
    aggregation: Identifier = "none"
    """What the aggregation must do so that nobody sees one update alone. ``none``: nothing. No other is there
    yet, so that a policy with another refuses every task.
    """


class Policy(Setting):
    """A site's policy."""

    model_config = ConfigDict(title="policy file")
    jobs: AllowedJobs = AllowedJobs()
    limits: Limits = Limits()
    privacy: Privacy = Privacy()

    def problem(self, task: Task, model_bytes: int) -> str:
        """Why the task is not taken; empty if it is. ``model_bytes`` is the model's size in memory."""
        found = [*self._job(task.terms), *self._privacy(task.terms), *self._work(task, model_bytes)]
        return found[0] if found else ""

    def _job(self, terms: Terms | None) -> Iterator[str]:
        for allowed, said in _SAYS.items():
            patterns: tuple[str, ...] | None = getattr(self.jobs, allowed)
            if patterns is None:
                continue
            if terms is None or not (value := getattr(terms, said)):
                yield f"the task does not say the job's {said}, which jobs.{allowed} asks for"
            elif not any(fnmatchcase(value, pattern) for pattern in patterns):
                yield f"{said} {value!r} is not among jobs.{allowed}"

    def _privacy(self, terms: Terms | None) -> Iterator[str]:
        wanted = self.privacy
        if wanted.min_cohort > 1 and (terms is None or terms.min_cohort < wanted.min_cohort):
            said = "the task does not say of how few learners' updates a version may be made"
            if terms is not None and terms.min_cohort:
                said = f"a version may be made of {terms.min_cohort} learners' updates (see 'quorum')"
            yield f"{said}; privacy.min_cohort is {wanted.min_cohort}"
        if wanted.aggregation != "none" and (terms is None or terms.privacy != wanted.aggregation):
            said = "nothing" if terms is None else terms.privacy
            yield f"the aggregation's privacy is {said!r}; privacy.aggregation is {wanted.aggregation!r}"

    def _work(self, task: Task, model_bytes: int) -> Iterator[str]:
        limits = self.limits
        for name, limit in (("epochs", limits.max_epochs), ("steps", limits.max_steps)):
            asked = task.parameters.get(name)
            if limit is None or asked is None:
                continue
            if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked <= limit:
                yield f"{asked!r} {name} are asked for; limits.max_{name} is {limit:g}"
        if limits.max_model_bytes is not None and model_bytes > limits.max_model_bytes:
            yield f"the model has {model_bytes} bytes; limits.max_model_bytes is {limits.max_model_bytes}"

    def check_done(self, update: Update) -> None:
        """Hold what training says it did against the limits; nothing of it leaves the site before.

        Raises:
            TaskDeclined: it is more.
        """
        for name, limit in (("epochs", self.limits.max_epochs), ("steps", self.limits.max_steps)):
            done = getattr(update, f"num_{name}", 0)
            if limit is not None and not done <= limit:
                raise TaskDeclined(f"{_BY}: training did {done} {name}; limits.max_{name} is {limit:g}")


_BY = "declined by the site's policy"


class Guard:
    """Holds a policy against tasks, and counts bytes. To be used on one thread, but for ``guarded``."""

    def __init__(self, policy: Policy, usage: Path | None = None) -> None:
        """``usage`` is the file that bytes are counted in; None: they are forgotten with the process.

        Raises:
            SettingError: the file is there and not usable, or cannot be written.
        """
        self.policy = policy
        self._usage = usage
        self._day, self._bytes = "", 0
        if usage is not None and policy.limits.max_bytes_per_day is not None:
            self._day, self._bytes = _read_usage(usage)
            self._write()

    @classmethod
    def read(cls, path: str | Path, usage: str | Path | None = None) -> Guard:
        """As a policy file says; bytes are counted in ``usage``, or in ``<policy file>.usage``.

        Raises:
            SettingError: it cannot be read, or something in it is wrong.
        """
        path = Path(path)
        policy = read_policy(path)
        if policy.privacy.aggregation != "none":
            log.warning(
                "%s: privacy.aggregation = %r: no aggregation does that yet, so every task will be refused; "
                "'none' demands nothing",
                path,
                policy.privacy.aggregation,
            )
        return cls(policy, Path(usage) if usage is not None else path.with_name(path.name + ".usage"))

    def admit(self, task: Task, now: float) -> int:
        """Hold a new task against the policy. The bytes that it brings and takes away come back; nothing is
        counted, since it may be refused for other reasons.

        Raises:
            TaskDeclined: the policy does not allow it.
            FrameRefused: the task contradicts itself.
        """
        spec = task.model.model_spec(max_bytes=1 << 62, kept=task.buffers)
        self.check(task, spec.num_bytes)
        update = encoding(task.encoding, frozenset(task.buffers)).num_bytes(spec) if task.train else 0
        num_bytes, limit = task.model.num_bytes + update, self.policy.limits.max_bytes_per_day
        self._turn_page(now)
        if limit is not None and self._bytes + num_bytes > limit:
            raise TaskDeclined(
                f"{_BY}: {num_bytes} bytes more than the {self._bytes} of {self._day} would be above "
                f"limits.max_bytes_per_day, {limit}"
            )
        return num_bytes

    def check(self, task: Task, model_bytes: int) -> None:
        """Hold a further message of a task that is there already against the policy: it brings no model and
        takes no update of its own.

        Raises:
            TaskDeclined: the policy does not allow it.
        """
        if problem := self.policy.problem(task, model_bytes):
            raise TaskDeclined(f"{_BY}: {problem}")

    def count(self, num_bytes: int, now: float) -> None:
        """Count what a task that is taken brings and takes away, or an update that is sent once more: that
        is never refused, since a round waits for it.
        """
        self._turn_page(now)
        self._count(num_bytes)

    def guarded(self, learner: Learner) -> Learner:
        """The learner, whose updates are held against the limits."""
        return _Guarded(learner, self.policy)

    def _turn_page(self, now: float) -> None:
        """Only forward: a clock that was set back gives no day anew."""
        day = time.strftime("%Y-%m-%d", time.gmtime(now))
        if day > self._day:
            self._day, self._bytes = day, 0

    def _count(self, num_bytes: int) -> None:
        if self.policy.limits.max_bytes_per_day is None:
            return
        self._bytes += num_bytes
        try:
            self._write()
        except SettingError as error:  # it goes on in memory: no limit is passed by it
            log.error("%s", error)

    def _write(self) -> None:
        if self._usage is None:
            return
        partial = self._usage.with_name(self._usage.name + ".partial")
        try:
            partial.write_text(json.dumps({"day": self._day, "bytes": self._bytes}), encoding="utf-8")
            partial.replace(self._usage)
        except OSError as error:
            raise SettingError(
                f"bytes of the day cannot be kept in {self._usage}: {error.strerror}; "
                "limits.max_bytes_per_day needs a folder that can be written to (see --policy-usage)"
            ) from error


class NoGuard:
    """A site without a policy: all is taken."""

    def admit(self, task: Task, now: float) -> int:
        """Take any task."""
        return 0

    def check(self, task: Task, model_bytes: int) -> None:
        """Take any message of it."""

    def count(self, num_bytes: int, now: float) -> None:
        """Count nothing."""

    def guarded(self, learner: Learner) -> Learner:
        """The learner as it is."""
        return learner


class _Guarded:
    def __init__(self, learner: Learner, policy: Policy) -> None:
        self._learner = learner
        self._policy = policy

    def train(self, model: Arrays, task: TaskContext) -> Update:
        update = self._learner.train(model, task)
        self._policy.check_done(update)
        return update

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return self._learner.evaluate(model, task)


def read_policy(path: Path) -> Policy:
    """What a policy file says.

    Raises:
        SettingError: it cannot be read, or fields of it are wrong; all of them are named.
    """
    fields = read_toml(path, "policy file")
    try:
        return Policy.model_validate(fields)
    except ValidationError as error:
        raise SettingError(f"{path}: {'; '.join(problems(error, Policy))}") from None


def _read_usage(path: Path) -> tuple[str, int]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        day = date.fromisoformat(known["day"]).isoformat() if known["day"] else ""
        return day, int(known["bytes"])
    except FileNotFoundError:
        return "", 0
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise SettingError(
            f"{path}, which keeps the bytes of the day, is not usable ({error}); delete it to begin anew"
        ) from error
