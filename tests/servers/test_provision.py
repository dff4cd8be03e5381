"""Where servers come from, and what happens when there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import provision


def test_a_given_url_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(provision.AMQP_VARIABLE, "amqp://given/")
    monkeypatch.setenv(provision.REDIS_VARIABLE, "redis://given/")
    with provision.broker(tmp_path) as server, server.vhost("any") as url:
        assert url == "amqp://given/"
    with provision.store(tmp_path) as store:
        assert (store.url, store.ours) == ("redis://given/", False)


@pytest.mark.parametrize("server", ["rabbitmq", "redis"])
@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_server_skips_on_a_laptop_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(provision, f"{server}_available", lambda: False)
    start = {"rabbitmq": provision.private_rabbitmq, "redis": provision.private_redis}[server]
    with pytest.raises(outcome, match="set BROKER_FL_TEST_"), start(tmp_path):
        pass


def test_each_test_has_an_empty_virtual_host(rabbitmq: provision.Broker) -> None:
    if rabbitmq.management is None:
        pytest.skip("a given broker has no virtual hosts of ours")
    with rabbitmq.vhost("one") as one, rabbitmq.vhost("two") as two:
        assert one != two
