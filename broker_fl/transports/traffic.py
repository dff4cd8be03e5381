"""What went through a transport since it was made."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Counted by the transport's own thread, read by any: what is read may be a message behind."""

    bytes_in: int = 0
    """Bodies of messages, without AMQP's frames."""
    bytes_out: int = 0
    """What was sent again counts again; one body for many mailboxes counts once."""
    messages_in: int = 0
    messages_out: int = 0
    num_reconnects: int = 0
    """Connections that were lost and work again."""
    past_blocked_s: float = 0.0
    blocked_since: float | None = None
    """``time.monotonic()``; None while the broker takes messages."""

    @property
    def is_blocked(self) -> bool:
        """Whether an alarm of the broker (memory, disk) holds up what is published."""
        return self.blocked_since is not None

    @property
    def blocked_s(self) -> float:
        """How long all alarms together, the present one included, have held it up."""
        since = self.blocked_since
        return self.past_blocked_s + (time.monotonic() - since if since is not None else 0.0)

    def block(self, blocked: bool) -> None:
        """An alarm began, or is over."""
        if blocked and self.blocked_since is None:
            self.blocked_since = time.monotonic()
        elif not blocked:
            self.past_blocked_s, self.blocked_since = self.blocked_s, None

    def sent(self, body: bytes) -> None:
        """One message went out."""
        self.messages_out += 1
        self.bytes_out += len(body)

    def took(self, body: bytes) -> None:
        """One message came in."""
        self.messages_in += 1
        self.bytes_in += len(body)
