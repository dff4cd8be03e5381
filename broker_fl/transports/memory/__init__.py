"""A message broker within one process, with the semantics of RabbitMQ: for simulations and tests."""

from broker_fl.transports.memory.broker import MemoryBroker
from broker_fl.transports.memory.transport import MemoryTransport

__all__ = ["MemoryBroker", "MemoryTransport"]
