"""Daemons on several machines over SSH: what should run where is one file, the inventory."""
