"""A consumer's membership in a group: what it says to the coordinator, when, and what it holds."""
