"""How a connection is made safe: TLS, a way through a proxy, certificates and a private authority for them.

=================  ======================================================================================
``tls``            what a user says about it, and the TLS context that comes of it
``proxy``          which HTTP proxy leads to a server, if one does
``certificates``   how long certificates hold
``audit``          the audit log: a chain of hashes
``authority``      a private certificate authority; the only file that imports ``cryptography``
=================  ======================================================================================
"""

from broker_fl.security.tls import Security

__all__ = ["Security"]
