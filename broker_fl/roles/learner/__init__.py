"""The learner's side: takes tasks from its mailbox, works on them, sends results back."""

from broker_fl.roles.learner.host import DEFAULT_HEARTBEAT_S, SOFTWARE, LearnerHost, LearnerSettings

__all__ = ["DEFAULT_HEARTBEAT_S", "SOFTWARE", "LearnerHost", "LearnerSettings"]
