"""Federated learning over a message broker. Importing this starts nothing and needs no server."""

__version__ = "0.1.0"
