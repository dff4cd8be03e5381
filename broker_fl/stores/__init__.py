"""Where a federation's state lives: ``sqlite`` (a file), ``redis`` (shared with standby controllers), or
``memory`` (nowhere else: for a federation in one process that leaves nothing behind).
"""

from __future__ import annotations

from broker_fl.errors import SettingError
from broker_fl.interfaces import Store


def open_store(url: str, *, federation: str) -> Store:
    """Open ``redis://…``, ``rediss://…``, ``unix://…`` (a Redis socket) or ``sqlite:path`` (a file).

    Raises:
        SettingError: the URL is of none of these forms, or the store cannot be used as it is set up.
        StoreUnavailable: the server does not answer.
    """
    scheme, separator, rest = url.partition(":")
    if not separator or not rest:
        raise SettingError("a store is given as redis://host:port/db, rediss://host:port/db or sqlite:path")
    # A store's driver is imported when it is used.
    if scheme == "sqlite":
        from broker_fl.stores.sqlite import SQLiteStore

        return SQLiteStore(rest.removeprefix("//"), federation=federation)
    if scheme in ("redis", "rediss", "unix"):
        from broker_fl.stores.redis import RedisStore

        return RedisStore(url, federation=federation)
    raise SettingError(
        f"a store of the kind {scheme!r} is not known; known are redis, rediss, unix and sqlite"
    )
