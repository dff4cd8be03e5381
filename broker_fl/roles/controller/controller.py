"""A controller's life: standing by for the lease, leading while it holds it, and its end."""

from __future__ import annotations

import logging
from functools import partial

from broker_fl.coordination.membership import Membership
from broker_fl.errors import Fenced, StoreUnavailable
from broker_fl.extensions import OwnClasses
from broker_fl.identity.accounts import Account
from broker_fl.interfaces import Store, Transport
from broker_fl.observer import NOBODY, Observer
from broker_fl.roles.controller.auditing import AuditLog
from broker_fl.roles.controller.hearing import Hearing
from broker_fl.roles.controller.leadership import Leadership
from broker_fl.roles.controller.lease import Lease
from broker_fl.roles.controller.patience import Patience
from broker_fl.roles.controller.places import Inbox, Keys
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.settings import ControllerSettings
from broker_fl.roles.controller.speakers import Identities
from broker_fl.roles.loop import Loop
from broker_fl.roles.runtime import THREADS, Clock, Runtime
from broker_fl.roles.sender import Sender
from broker_fl.roles.status import ControllerStatus
from broker_fl.security.audit import Deed
from broker_fl.topology import Topology

log = logging.getLogger(__name__)


class Controller:
    """One controller of one federation. Of several, one works; the others stand by for its lease."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        settings: ControllerSettings | None = None,
        own: OwnClasses | None = None,
        runtime: Runtime = THREADS,
    ) -> None:
        """``own``: the rules and selectors that jobs may name besides those of the library."""
        self._own = own or OwnClasses()
        self._observer = NOBODY
        self.settings = settings or ControllerSettings()
        self.topology = Topology(self.settings.federation)
        self._transport = transport
        self._store = store
        self._runtime = runtime
        self._clock = Clock(runtime)
        self._stop = runtime.event()
        self._settled = runtime.event()  # it is active, or has ended before it was
        self._is_active = False
        self._members = Membership(self.settings.heartbeat_s, self._clock.now())
        self._leadership: Leadership | None = None
        self._patience = Patience(
            self.settings.store_patience_s, clock=self._clock, stop=self._stop, give_up=self._give_up
        )
        self._lease = Lease(
            store,
            f"controller-{runtime.unique()[:12]}",
            ttl_s=self.settings.lease_ttl_s,
            on_fenced=self._fenced,
            runtime=runtime,
        )
        self._loop = Loop("controller", runtime)
        self._sender = Sender(transport, "controller-sender", runtime)
        self._bulk_sender = Sender(transport, "controller-bulk-sender", runtime)
        self._main = runtime.thread(self._run, "controller-main")
        self.error: BaseException | None = None
        """What ended the controller, if it was not ``stop``."""

    def observe(self, observer: Observer) -> None:
        """Tell it from now on; before ``start``."""
        self._observer = observer

    def start(self) -> None:
        """Begin: stand by for the lease, then work, on threads of its own."""
        self._main.start()

    def wait_active(self, timeout_s: float | None = None) -> bool:
        """Wait until it holds the lease and hears learners and drivers; False if it ended before that, or if
        that takes longer.
        """
        self._settled.wait(timeout_s)
        return self._is_active

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the controller's end; False if that takes longer."""
        self._main.join(timeout_s)
        return not self._main.is_alive()

    def stop(self) -> None:
        """End: jobs stay as they are in the store, and the next controller goes on with them."""
        self._stop.set()
        self._loop.stop()

    @property
    def epoch(self) -> int:
        """Of the lease that it holds; 0 before."""
        return self._lease.epoch

    def status(self) -> ControllerStatus:
        """How it is doing; from any thread."""
        leadership = self._leadership
        queues = {"reports": self.topology.reports, "control": self.topology.control}
        if leadership is not None:
            queues["inbox"] = leadership.inbox
        has_ended = self._stop.is_set() or self.error is not None
        return ControllerStatus(
            num_learners=len(self._members),
            num_calls=self._loop.num_calls,
            stalled_s=self._loop.stalled_s if self._is_active else 0.0,
            has_ended=has_ended,
            queues=queues,
            epoch=self._lease.epoch,
            is_active=self._is_active and not has_ended,
            is_standby=self._lease.is_waiting,
            is_without_store=self._patience.is_without_store,
            num_jobs=leadership.jobs.num_by_phase() if leadership is not None and self._is_active else {},
        )

    # ------------------------------------------------------------ on the controller's main thread

    def _run(self) -> None:
        try:
            if self._lease.acquire(self._stop, self.settings.store_patience_s):
                self._lead()
        except BaseException as error:  # noqa: BLE001 - kept for the owner, who decides
            self.error = error
            log.error("the controller ends: %s", error)
        finally:
            self._settled.set()
            self._lease.release()
            self._bulk_sender.stop(5.0)
            self._sender.stop(5.0)

    def _lead(self) -> None:
        """Hear everybody until the loop ends; with the lease in hand."""
        services = self._new_services(self._lease.epoch)
        is_enrolled = Account.of(self._transport.user) is not None
        identities: Identities = "required" if is_enrolled else self.settings.identities
        leadership = self._leadership = Leadership(services, self.settings, identities, self._patience)
        leadership.begin()
        hearing = Hearing(self._lease, leadership, ttl_s=self.settings.lease_ttl_s, runtime=self._runtime)
        hearing.start()
        self._loop.start(on_idle=partial(self._idle, leadership), timeout_s=leadership.timeout_s)
        log.info("controller of federation %s is active, epoch %d", self.settings.federation, services.epoch)
        self._is_active = True
        self._settled.set()
        self._loop.join()
        hearing.stop()
        self.error = self.error or self._loop.error
        if self.error is None:
            leadership.end()
        leadership.cancel()

    def _idle(self, leadership: Leadership) -> None:
        if not self._loop.num_calls:  # it may only be that a timer is due
            leadership.jobs.settle()
        leadership.do_what_is_due()

    def _new_services(self, epoch: int) -> Services:
        federation, persist = self.settings.federation, self._patience.persist
        audit = persist(partial(AuditLog, self._store, federation, epoch, self._clock))
        audit.add(Deed(actor=self._transport.user, action="took_over", subject=f"epoch {epoch}"))
        return Services(
            topology=self.topology,
            transport=self._transport,
            store=self._store,
            sender=self._sender,
            bulk_sender=self._bulk_sender,
            clock=self._clock,
            place=Inbox(self._transport, self.topology, epoch),
            keys=Keys(self.topology),
            epoch=epoch,
            post=self._loop.post,
            persist=persist,
            has_given_up=lambda: self._patience.has_given_up,
            is_sure=lambda: self._lease.is_sure,
            members=self._members,
            own=self._own,
            observer=self._observer,
            audit=audit,
        )

    # ------------------------------------------------------------ what ends it

    def _fenced(self, error: Fenced) -> None:
        self.error = error
        log.error("%s: this controller stops", error)
        self.stop()

    def _give_up(self, error: StoreUnavailable) -> None:
        self.error = self.error or error
        self.stop()
