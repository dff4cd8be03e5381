"""RabbitMQ: the transport of federations that are real. The only folder that imports pika.

====================  ===============================================================================
``address``           URL and ``Security`` → where and as whom to connect
``addresses``         the same of a cluster's nodes, and options of the URL
``tunnel``            the way through an HTTP proxy
``failures``          what pika and the broker say → our errors
``io``                the thread that owns both connections
``link``              one connection, kept alive
``channel``           one AMQP channel, with awaitable calls
``publisher``         confirms, the window, sending again
``consuming``         channels of consumers, settling in batches
``consumer``          consuming from a queue, whatever happens
``transport``         the parts put together
====================  ===============================================================================
"""

from broker_fl.transports.rabbitmq.transport import RabbitMQTransport

__all__ = ["RabbitMQTransport"]
