"""The driver: submits jobs, follows them, and reads what came of them."""

from broker_fl.roles.driver.driver import Driver, Job

__all__ = ["Driver", "Job"]
