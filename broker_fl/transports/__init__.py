"""How messages travel: ``memory`` within one process, ``rabbitmq`` everywhere else."""
