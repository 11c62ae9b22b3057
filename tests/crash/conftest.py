"""The integration tests' broker, for the crash tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).parent.parent / "integration" / "conftest.py"
_spec = importlib.util.spec_from_file_location("shmbroker_integration_conftest", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

Broker = _module.Broker
broker = _module.broker
broker_config = _module.broker_config
reach = _module.reach

__all__ = ["Broker", "broker", "broker_config", "reach"]
