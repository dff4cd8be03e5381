"""One job at work: what its state machine (``coordination``) decides is performed here."""
