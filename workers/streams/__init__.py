"""The parts of a reader process: one partition's batches to the sockets of remote consumers."""
