"""``python -m broker_fl.cli`` is ``broker-fl``, for where no script is on the path."""

from broker_fl.cli.main import main

main()
