"""The stage that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.attackers.stage import Stage, staged
from tests.servers.provision import Broker


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, rabbitmq: Broker) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("attackers"), rabbitmq) as found:
        yield found
