"""From the options of a command to the broker."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from broker_fl.cli.tables import when
from broker_fl.errors import RequestRefused, SettingError
from broker_fl.roles.driver import Driver, Job
from broker_fl.security import Security
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire.messages import JobSummary

LATEST = "latest"


def broker_security(given: Mapping[str, Any]) -> Security:
    """How the broker is reached, besides its URL."""
    return Security(
        ca_file=given.get("tls_ca"),
        ca_text=given.get("tls_ca_text"),
        cert_file=given.get("tls_cert"),
        key_file=given.get("tls_key"),
        proxy=given.get("proxy"),
        insecure_plaintext=bool(given.get("insecure_plaintext")),
    )


def store_security(given: Mapping[str, Any]) -> Security:
    """How Redis is reached, besides its URL."""
    return Security(
        ca_file=given.get("store_tls_ca"),
        cert_file=given.get("store_tls_cert"),
        key_file=given.get("store_tls_key"),
        insecure_plaintext=bool(given.get("insecure_plaintext")),
    )


@contextmanager
def driver_of(given: Mapping[str, Any]) -> Iterator[Driver]:
    """A driver of the federation.

    Raises:
        SettingError, AccessDenied: trying again changes nothing.
        BrokerUnavailable: the broker does not answer.
    """
    transport = RabbitMQTransport(given["broker"], name="broker-fl driver", security=broker_security(given))
    federation = given["federation"]
    say = functools.partial(_say_waiting, federation)
    try:
        driver = Driver(transport, federation, timeout_s=given["timeout_s"], on_waiting=say)
    except BaseException:
        transport.close()
        raise
    with driver:
        yield driver


def _say_waiting(federation: str, left_s: float) -> None:
    """A command that stands still says for what, and until when."""
    until = when(time.time() + left_s)
    said = f"waiting for the answer of a controller of federation {federation}, until {until}"
    click.echo(f"{said} ({left_s:.0f} s; --timeout)", err=True)


def find_job(driver: Driver, wanted: str) -> Job:
    """A job by its id, by a beginning of it that only one job has, or the newest by ``latest``.

    Raises:
        RequestRefused: there is no such job, or there are several.
    """
    return driver.job(find_summary(driver, wanted).job)


def find_version(driver: Driver, wanted: str) -> tuple[Job, int | None]:
    """``JOB`` or ``JOB@V``, where ``JOB`` is as in all commands; None is the newest version.

    Raises:
        SettingError: what follows the ``@`` is no number.
        RequestRefused: there is no such job, or there are several.
    """
    job, at, version = wanted.partition("@")
    if at and not (version.isascii() and version.isdecimal()):
        raise SettingError(f"{wanted}: {version!r} is no version; give a number, as in {job}@3")
    return find_job(driver, job), int(version) if at else None


def find_summary(driver: Driver, wanted: str) -> JobSummary:
    """As ``find_job``, with what the job is like now."""
    jobs = {summary.job: summary for summary in driver.jobs()}
    names = list(jobs)
    if wanted == LATEST and jobs:
        return max(jobs.values(), key=_submitted_at)
    found = [wanted] if wanted in jobs else [name for name in names if name.startswith(wanted)]
    if len(found) == 1:
        return jobs[found[0]]
    federation = driver.topology.federation
    if found:
        raise RequestRefused(
            f"{wanted!r} may be any of {len(found)} jobs: {', '.join(found[:5])}; give more of the id"
        )
    there = f"the newest are {', '.join(names[-3:])}" if names else "it has none"
    raise RequestRefused(f"federation {federation!r} has no job {wanted!r}; {there}")


def _submitted_at(summary: JobSummary) -> float:
    return summary.submitted_at
