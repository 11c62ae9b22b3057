"""The client of a broker elsewhere: the same classes over ZeroMQ and TCP."""
