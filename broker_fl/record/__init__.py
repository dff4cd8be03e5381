"""The record of a job: history, run folder, report page and live view; all read the same events."""
