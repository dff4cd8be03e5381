"""The part of RabbitMQ's management HTTP interface that a local cluster and the tests use."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import quote

from broker_fl.errors import AccessDenied, BrokerUnavailable

_TIMEOUT_S = 30.0


class ManagementApi:
    """Virtual hosts through HTTP: about 0.02 s each, where ``rabbitmqctl`` starts an Erlang for 0.5 s."""

    def __init__(self, url: str, *, user: str, password: str) -> None:
        """`url` is the root, such as ``http://127.0.0.1:15672``; the account must be an administrator."""
        self._url = url.rstrip("/")
        self._user = user
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def add_vhost(self, name: str) -> None:
        """Make a virtual host on which the account may do everything; one that exists is kept."""
        self.request("PUT", f"/api/vhosts/{quote(name, safe='')}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.request(
            "PUT", f"/api/permissions/{quote(name, safe='')}/{quote(self._user, safe='')}", everything
        )

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host and all its queues; its connections are closed by the broker."""
        self.request("DELETE", f"/api/vhosts/{quote(name, safe='')}")

    def request(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        """One request; the answer's JSON, or None when it is empty.

        Raises:
            AccessDenied: the account may not do this.
            BrokerUnavailable: no answer, or an error from the server.
        """
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - the address is that of a node of ours
            self._url + path, data=data, headers=self._headers, method=method
        )
        # Never through a proxy that the environment names: this is a server of ours.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as e:
            with e:
                reason = f"{method} {self._url}{path}: {e.code} {e.read().decode(errors='replace')[:500]}"
            raise (AccessDenied if e.code in (401, 403) else BrokerUnavailable)(reason) from e
        except OSError as e:
            raise BrokerUnavailable(f"{method} {self._url}{path}: {e}") from e
        return json.loads(text) if text else None
