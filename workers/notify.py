"""What a daemon tells systemd: that it is ready, lives, ends (sd_notify(3), without a library)."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


class Systemd:
    """The service manager that started this process; does nothing where there is none."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        is_meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = os.environ.get("WATCHDOG_USEC", "") if is_meant else ""
        self.watchdog_s = int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
        """It kills the process when it hears nothing for so long; 0: it does not."""

    def tell(self, state: str) -> None:
        """Send ``READY=1``, ``WATCHDOG=1``, ``STOPPING=1`` or ``STATUS=…``."""
        if not self._address.startswith(("/", "@")):
            return
        # An abstract address begins with a zero byte, written as @.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(state.encode(), address)
        except OSError as error:
            log.debug("systemd was not told %s: %s", state, error)
