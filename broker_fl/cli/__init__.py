"""The command line: every command, its settings, what it prints and how it ends.

===============  ====================================================================================
``main``         the console script, and the group; commands are imported when they are called
``command``      what all commands share: settings, verbosity, errors and exit codes
``settings``     the settings file
``options``      options that several commands have
``run``, …       a file per command, or per family of commands
===============  ====================================================================================
"""

from broker_fl.cli.main import commands, main

__all__ = ["commands", "main"]
