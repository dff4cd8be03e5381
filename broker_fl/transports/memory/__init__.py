"""A message broker within one process, with the semantics of RabbitMQ: what simulations and most tests run on."""

from broker_fl.transports.memory.broker import MemoryBroker
from broker_fl.transports.memory.transport import MemoryTransport

__all__ = ["MemoryBroker", "MemoryTransport"]
