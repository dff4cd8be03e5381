"""What produces the figures in the docs. Nothing here is asserted; run by hand or by ``make bench``."""
