"""What the errors of Redis mean, and what of a URL may be shown."""

from __future__ import annotations

import pytest
from redis import exceptions

from broker_fl.errors import AccessDenied, BrokerFLError, SettingError, StoreUnavailable
from broker_fl.stores.redis_client import place, translated


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (exceptions.AuthenticationError("invalid username-password pair"), AccessDenied),
        (exceptions.NoPermissionError("this user has no permissions"), AccessDenied),
        (exceptions.ResponseError("NOAUTH Authentication required"), AccessDenied),
        (exceptions.ResponseError("ACL failure in script: User fl has no permissions"), AccessDenied),
        (exceptions.ConnectionError("Error 111 connecting"), StoreUnavailable),
        (exceptions.TimeoutError("Timeout reading from socket"), StoreUnavailable),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), StoreUnavailable),
        (
            exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
            StoreUnavailable,
        ),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), StoreUnavailable),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), StoreUnavailable),
        (exceptions.ResponseError("BUSY Redis is busy running a script"), StoreUnavailable),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), StoreUnavailable),
        (exceptions.MasterDownError("Link with MASTER is down"), StoreUnavailable),
        (exceptions.MovedError("866 10.0.0.2:6379"), StoreUnavailable),
        (exceptions.InvalidResponse("Protocol Error"), StoreUnavailable),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), SettingError),
        (exceptions.ResponseError("unknown command 'UNLINK'"), SettingError),
    ],
)
def test_an_error_of_the_server_says_what_to_do(error: Exception, meaning: type[BrokerFLError]) -> None:
    with pytest.raises(BrokerFLError, match="redis://host:1/0") as caught, translated("redis://host:1/0"):
        raise error
    assert type(caught.value) is meaning
    assert str(error).split()[-1] in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/1", "redis://host:6379/1"),
        ("rediss://:secret@host", "rediss://host"),
        ("redis://host/0?password=secret", "redis://host/0"),
        ("redis://:secret@host:port/0", "redis://…"),
        ("unix://secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert place(url) == shown
