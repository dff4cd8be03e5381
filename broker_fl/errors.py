"""Every error of the library, in one tree, split by what the caller does about it.

::

    BrokerFLError
    ├── SettingError              something the user gave is wrong      → stop and say so (exit code 2)
    │   ├── AppError              the app file or its factory           → mend the app file
    │   └── AccessDenied          credentials, vhost or permission      → mend the account
    │       ├── LoginRefused      the account, its password or its date → ask who runs the broker
    │       └── QueueInUse        somebody else reads it alone          → wait, or find out who
    ├── MessageRefused            a peer sent what we do not take       → dead-letter it, go on
    │   ├── FrameRefused          bytes that are no valid frame
    │   ├── UpdateRefused         an update that must not be folded
    │   └── TaskDeclined          the site's policy does not allow it
    ├── RequestRefused            the controller declined a request     → tell the user
    ├── AggregationError          these updates cannot be combined      → fail the round
    ├── ServerUnavailable         a server did not answer               → back off, try again
    │   ├── BrokerUnavailable
    │   └── StoreUnavailable
    ├── AuditBroken               the audit log was tampered with       → find out who, and when
    ├── Fenced                    another controller holds the lease    → stop writing at once
    ├── VersionsLost              the store forgot what it had taken    → begin anew from what it has
    ├── TaskCancelled             the controller no longer wants it     → leave ``train`` quietly
    └── TransportClosed           closed by its owner while in use      → the role is shutting down
"""

from __future__ import annotations


class BrokerFLError(Exception):
    """Base of all errors that the library raises on purpose."""


class SettingError(BrokerFLError):
    """A setting, a file or an argument that the user gave is wrong; trying again changes nothing."""


class AppError(SettingError):
    """The user's app file does not import, its factory fails, or what it makes is not a learner."""


class AccessDenied(SettingError):
    """A server answered and refused: credentials, virtual host or a missing permission."""


class LoginRefused(AccessDenied):
    """The broker does not know the account, or takes another password or certificate for it."""


class QueueInUse(AccessDenied):
    """Somebody else consumes from a queue that only one may read: another process, or one that just died."""


class MessageRefused(BrokerFLError):
    """A peer sent something that is not taken; the sender's other messages are unaffected."""


class FrameRefused(MessageRefused):
    """Bytes that are not a valid frame: truncated, corrupt, oversized, of unknown kind or version."""


class UpdateRefused(MessageRefused):
    """An update that must not be folded: wrong shape, weight or values. Nothing was changed."""


class TaskDeclined(MessageRefused):
    """A task that the site's policy does not allow."""


class RequestRefused(BrokerFLError):
    """The controller declined a driver's request, and said why."""


class SettingRefused(RequestRefused, SettingError):
    """The controller declined what can never be: a setting of the request has to be another."""


class AggregationError(BrokerFLError):
    """The accepted updates cannot be combined into a model version."""


class ServerUnavailable(BrokerFLError):
    """A server did not answer, or went away; the operation may be tried again."""


class BrokerUnavailable(ServerUnavailable):
    """RabbitMQ did not answer, or closed the connection."""


class QueueLost(BrokerUnavailable):
    """A queue is on a node of the broker's cluster that is down. Until that is back no queue can have its
    name, so another one must do.
    """


class StoreUnavailable(ServerUnavailable):
    """The model store did not answer, or could not write."""


class AuditBroken(BrokerFLError):
    """An audit log whose entries do not fit one another, or what is remembered of it."""


class Fenced(BrokerFLError):
    """A controller with a newer epoch holds the federation's lease; this one changed nothing."""


class VersionsLost(BrokerFLError):
    """The store has lost versions that it had confirmed; who starts anew goes on from those that are left."""


class TaskCancelled(BrokerFLError):
    """The task a learner works on was cancelled; raised inside the user's ``train`` by ``task.progress``."""


class TransportClosed(BrokerFLError):
    """The transport was closed by its owner while a call on it was under way."""
