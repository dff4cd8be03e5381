"""Private RabbitMQ and Redis servers, started from the installed programs in a folder of their own.

`broker-fl up` runs its cluster on them, and so do the tests. A node listens on loopback only, has an account
with a random password, shares nothing with a server that the machine runs already, and is found again from
its folder by another process: ``RabbitMQNode(folder).stop()``.
"""

from broker_fl.identity.management import ManagementApi
from broker_fl.workers.servers.rabbitmq import RabbitMQNode, rabbitmq_available
from broker_fl.workers.servers.redis import RedisNode, redis_available

__all__ = ["ManagementApi", "RabbitMQNode", "RedisNode", "rabbitmq_available", "redis_available"]
