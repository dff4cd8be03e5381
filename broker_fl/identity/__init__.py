"""Who may speak in a federation, as whom, and how an account comes into the world.

=================  ======================================================================================
``accounts``       names of accounts: from a broker's user to federation, role and name, and back; pure
``permissions``    what an account of each role may do on the broker; pure
``passwords``      strong ones, and their hashes as RabbitMQ keeps them
``joinfile``       the file that is all a site needs
``tokens``         the file with which a site asks to be enrolled, and what it asks
``management``     RabbitMQ's management HTTP interface
``members``        enrolling, rotating, revoking, listing: through that interface
``granting``       requests of sites that hold a token, waiting for an operator
=================  ======================================================================================
"""
