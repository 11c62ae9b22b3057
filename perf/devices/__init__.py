"""Storage devices: what they are, their raw limits, and the broker's workloads on them."""

__all__: list[str] = []
