"""A broker elsewhere: the connection to it over a network, and what producers and consumers use of it."""
