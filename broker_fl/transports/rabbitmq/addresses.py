"""A broker URL that names the nodes of a cluster, and options behind a question mark."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from broker_fl.errors import SettingError
from broker_fl.security import Security
from broker_fl.transports.rabbitmq.address import Address, parse_address

HEARTBEAT = "heartbeat"
_MAX_HEARTBEAT_S = 65535
_NUMBER = re.compile("[0-9]{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a broker is: on one node or on several, of which any will do."""

    nodes: tuple[Address, ...]
    heartbeat_s: int | None = None
    """What the URL asks for; None: nothing."""

    def __str__(self) -> str:
        return " or ".join(map(str, self.nodes))


def parse_addresses(url: str, security: Security | None = None) -> Addresses:
    """Take ``amqp[s]://user:password@host[:port][,host[:port]…]/vhost[?heartbeat=SECONDS]`` apart.

    Raises:
        SettingError: the URL or a file is not usable.
    """
    base, _, query = url.partition("?")
    scheme, separator, rest = base.partition("://")
    authority, slash, path = rest.partition("/")
    account, at, hosts = authority.rpartition("@")
    nodes = tuple(
        parse_address(f"{scheme}{separator}{account}{at}{host}{slash}{path}", security)
        for host in hosts.split(",")
    )
    return Addresses(nodes=nodes, heartbeat_s=_heartbeat_s(query))


def _heartbeat_s(query: str) -> int | None:
    if not query:
        return None
    options = dict(parse_qsl(query, keep_blank_values=True))
    text = options.pop(HEARTBEAT, "")
    if options or not _NUMBER.fullmatch(text) or not 1 <= int(text) <= _MAX_HEARTBEAT_S:
        # Nothing of the URL is repeated: a password with a bare ? ends up here.
        raise SettingError(
            f"broker URL: what may follow a ? is {HEARTBEAT}=SECONDS (1 to {_MAX_HEARTBEAT_S}); "
            "special characters in user, password and vhost are percent-encoded (? is %3F)"
        )
    return int(text)
