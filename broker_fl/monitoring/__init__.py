"""How a daemon is seen from outside: metrics for Prometheus, and whether it lives and is ready, over HTTP."""
