"""How messages travel: ``memory`` within one process, ``rabbitmq`` everywhere else. Importing this imports no driver."""
