"""``broker-fl controller`` and ``broker-fl learner``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click

from broker_fl.cli import options
from broker_fl.cli.access import broker_security, store_security
from broker_fl.cli.command import Daemon
from broker_fl.errors import SettingError
from broker_fl.roles.controller.speakers import Identities
from broker_fl.security.tls import is_loopback
from broker_fl.wire.fields import MAX_GROUP

MAX_ALONE = 2_000
"""Learners of one process that have a mailbox each: a channel for each, of 2,047 that RabbitMQ allows."""


@click.command(cls=Daemon)
@options.broker_access
@options.store
@options.connect_timeout
@click.option(
    "--app", metavar="APP", help="Jobs may name the rules and selectors of this app by their classes."
)
@click.option(
    "--heartbeat",
    "heartbeat_s",
    type=click.FloatRange(0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How often learners say that they are there; four missed in a row, and one is lost.",
)
@click.option(
    "--lease",
    "lease_s",
    type=click.FloatRange(1),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a standby waits after the last sign of life of a controller.",
)
@click.option(
    "--identities",
    type=click.Choice(["required", "shared"]),
    help="required: everybody has an account of their own (broker-fl enroll), and speaks for nobody else; "
    "shared: all are believed who they say they are.  [default: shared if the broker is on this machine and "
    "the controller's account is not an enrolled one]",
)
@click.option(
    "--keep-jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Of the jobs that have ended, delete all but the newest N, an hour after their end.  [default: keep "
    "all]",
)
@click.option(
    "--keep-days",
    type=click.FloatRange(0, min_open=True),
    metavar="DAYS",
    help="Delete jobs so long after their end.  [default: never]",
)
@options.watched
def controller(store: str, app: str | None, heartbeat_s: float, lease_s: float, **access: Any) -> None:
    """Run a controller of a federation, until a signal comes.

    Several may run: one works, the others stand by. Jobs are in the store and go on with the
    next controller. APP is FILE.py or package.module; each of them should be given the same.
    """
    from broker_fl.apps import load_module
    from broker_fl.extensions import OwnClasses
    from broker_fl.roles.controller import ControllerSettings
    from broker_fl.workers.controller import ControllerOptions, run_controller

    account = access.get("joined")
    if account is not None and account.role != "controller":
        raise SettingError(f"the join file is that of {account}; a controller needs one of a controller")
    settings = ControllerSettings(
        federation=access["federation"],
        heartbeat_s=heartbeat_s,
        lease_ttl_s=lease_s,
        identities=access["identities"] or _identities(access["broker"]),
        retention=_retention(access["keep_jobs"], access["keep_days"]),
    )
    own = OwnClasses.of_module(*load_module(app)) if app else OwnClasses()
    run_controller(
        ControllerOptions(
            broker=_broker_access(access),
            store=store,
            store_security=store_security(access),
            settings=settings,
            own=own,
            metrics=_metrics_address(access),
        )
    )


def _retention(num_jobs: int | None, days: float | None) -> Any:
    from broker_fl.roles.controller.retention import Retention

    return Retention(num_jobs=num_jobs, max_age_s=None if days is None else days * 86400)


def _identities(broker: str) -> Identities:
    """What is required where nothing is said: whom a network can bring is not believed."""
    place = broker.partition("://")[2].partition("/")[0].rpartition("@")[2]
    hosts = [urlsplit(f"//{one}").hostname or "" for one in place.split(",")]
    return "shared" if all(is_loopback(host) for host in hosts) else "required"


@click.command(cls=Daemon)
@click.argument("app")
@options.broker_access
@options.connect_timeout
@click.option(
    "--id",
    "learner_id",
    type=options.Identifier(),
    metavar="ID",
    help="Its name in the federation.",
)
@click.option(
    "--group",
    type=options.Identifier(),
    metavar="NAME",
    help="Instead of ID: the COUNT learners have one mailbox and send one sum of their updates; for rules "
    "that are a weighted sum.",
)
@click.option(
    "--count",
    type=click.IntRange(1, MAX_GROUP),
    default=1,
    show_default=True,
    metavar="N",
    help="Virtual learners ID-0, ID-1, … (or NAME-0, …) in this process; in a group each is made when it is "
    "worked on.",
)
@options.parameters(
    "attribute", "-a", "Told to the controller, which may select by it; may be given several times."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Of COUNT learners, how many compute at the same time.",
)
@click.option(
    "--policy",
    metavar="FILE",
    help="TOML: what this site lets be done with its data; each task is held against it.",
)
@click.option(
    "--policy-usage",
    metavar="FILE",
    help="Where the bytes of the day are counted for it, if not in FILE.usage beside it.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a task may still take after the first signal; then it is handed back.",
)
@click.option(
    "--takeover-timeout",
    "takeover_timeout_s",
    type=click.FloatRange(0),
    default=150.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait while another process reads this learner's mailbox.",
)
@options.watched
def learner(app: str, **given: Any) -> None:
    """Run a learner of APP, until a signal comes.

    APP is FILE.py:FACTORY, package.module:FACTORY, or FILE.py. SIGTERM or Ctrl-C finishes the task and
    leaves; the second ends at once.
    """
    from broker_fl.apps import load_app
    from broker_fl.workers.learner import run_learners

    run_learners(load_app(app), _learner_options(**given))


def _learner_options(**given: Any) -> Any:
    from broker_fl.roles.learner import LearnerSettings
    from broker_fl.roles.learner.policy import Guard
    from broker_fl.workers.learner import LearnerOptions, group_ids, learner_ids

    learner_id, group, count = _names(given)
    if (learner_id is None) == (group is None):
        raise click.UsageError("give one of --id and --group: a learner's own name, or that of a group")
    if group is None and count > MAX_ALONE:
        raise click.BadParameter(
            f"{count} learners with a mailbox each are too many for one process; at most {MAX_ALONE}, or "
            "give --group",
            param_hint="'--count'",
        )
    if given["policy_usage"] and not given["policy"]:
        raise click.UsageError("--policy-usage is for --policy, which is not given")
    settings = LearnerSettings(
        federation=given["federation"],
        attributes=options.checked_parameters(given["attributes"], "--attribute"),
        num_workers=given["workers"],
        group=group,
        guard=Guard.read(given["policy"], given["policy_usage"]) if given["policy"] else None,
    )
    return LearnerOptions(
        broker=_broker_access(given),
        ids=learner_ids(str(learner_id), count) if group is None else group_ids(group, count),
        settings=settings,
        drain_s=given["drain_s"],
        takeover_timeout_s=given["takeover_timeout_s"],
        metrics=_metrics_address(given),
    )


def _names(given: Mapping[str, Any]) -> tuple[str | None, str | None, int]:
    """Id, group and count, of which a join file says the name."""
    learner_id, group, count, account = (
        given["learner_id"],
        given["group"],
        given["count"],
        given.get("joined"),
    )
    if account is None:
        return learner_id, group, count
    if account.role not in ("learner", "group"):
        raise SettingError(f"the join file is that of {account}; a learner needs one of a learner or a group")
    if {learner_id, group} - {None, account.name}:
        raise click.UsageError(f"the join file is that of {account}; leave out --id and --group")
    if account.role == "learner" and count > 1:
        raise click.BadParameter(
            "the join file is for one learner; for many in one process, enroll a group "
            f"(broker-fl enroll {account.name} --role group)",
            param_hint="'--count'",
        )
    return (account.name, None, 1) if account.role == "learner" else (None, account.name, count)


def _metrics_address(given: Mapping[str, Any]) -> Any:
    from broker_fl.workers.watching import MetricsAddress

    port = given["metrics_port"]
    return None if port is None else MetricsAddress(port=port, address=given["metrics_addr"])


def _broker_access(given: Mapping[str, Any]) -> Any:
    from broker_fl.workers.connecting import BrokerAccess

    return BrokerAccess(
        url=given["broker"], security=broker_security(given), connect_timeout_s=given["connect_timeout_s"]
    )
