"""How a controller behaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_fl.roles.controller.retention import Retention
from broker_fl.roles.controller.speakers import Identities


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """Of one controller; those of a federation should agree."""

    federation: str = "default"
    heartbeat_s: float = 5.0
    """How often learners are asked to be heard of; four missed in a row, and one is lost."""
    lease_ttl_s: float = 15.0
    """How long a standby waits after the last sign of life of a controller that died."""
    max_model_bytes: int = 8 << 30
    """A job with a larger model is refused."""
    store_patience_s: float | None = None
    """How long a store that fails is asked again before that ends the controller; None is for ever."""
    identities: Identities = "shared"
    """``required``: every message has to come from an enrolled account, in its own name. A controller whose
    own account is an enrolled one always requires that.
    """
    retention: Retention = field(default_factory=Retention)
    """Which jobs that have ended are kept."""
