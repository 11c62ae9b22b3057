"""Consumer groups: the coordinator, offsets, and their store. docs/groups.md tells how it works."""
