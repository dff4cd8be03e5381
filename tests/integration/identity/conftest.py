"""Enrolled accounts on a real broker, made by the real commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.enrolling import Operator
from tests.servers.provision import Broker


@pytest.fixture
def operator(tmp_path: Path, rabbitmq: Broker, amqp_url: str, federation: str) -> Iterator[Operator]:
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    with Operator(tmp_path, amqp_url, rabbitmq.management, federation) as operator:
        yield operator
