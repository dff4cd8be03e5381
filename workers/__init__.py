"""The daemons and the local servers: arguments, environment, signals, logging, exit codes, health."""
