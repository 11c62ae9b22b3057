"""The broker's own log: structlog on standard error, for people on a terminal, JSON otherwise.

structlog is imported at the first line that is logged: with what it brings it takes as long as
everything else in the start of a worker, which then has nothing to say.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Final

_LEVEL: Final = "_SHMBROKER_LOG_LEVEL"  # in the environment, so that workers take it over
_FORM: Final = "_SHMBROKER_LOG_FORMAT"
_NOBODY: Final = frozenset((errno.EPIPE, errno.EIO, errno.EBADF))
_configured = False
_process = ""


class _StandardError:
    """Where lines go. Who read them may be gone (a closed terminal, a killed parent): then they are
    dropped, since a broker must not end, or hang while it stops, for want of a reader."""

    def write(self, text: str) -> None:
        """A line, or as much of it as can be."""
        self._try(lambda: sys.stderr.write(text))

    def flush(self) -> None:
        """What is buffered."""
        self._try(sys.stderr.flush)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            if error.errno in _NOBODY:  # what is buffered, and what Python says at its end, too
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)


class LazyLogger:
    """Looks like a structlog logger, and becomes one when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Any = None

    def __getattr__(self, method: str) -> Any:
        if self._logger is None:
            configure()
            import structlog

            self._logger = structlog.get_logger(component=self._name)
        return getattr(self._logger, method)


def get_logger(name: str) -> Any:
    """A logger for a module of the broker: `log.info("what", key=value)`."""
    return LazyLogger(name)


def set_process(name: str) -> None:
    """Says in every line from now on which process it is from."""
    global _process
    _process = name


def _add_process(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return event | {"process": _process} if _process else event


def set_level(level: str, form: str | None = None) -> None:
    """The least level that is logged, here and in workers started from now on.

    `form`: "text" or "json" whatever standard error is.
    """
    os.environ[_LEVEL] = level
    if form is not None:
        os.environ[_FORM] = form


def _import_structlog() -> Any:
    """structlog without rich, which takes twice as long to load as everything else and would only
    paint tracebacks."""
    hidden = "rich" not in sys.modules
    modules: dict[str, Any] = sys.modules
    if hidden:
        modules["rich"] = None  # its import fails, as where it is not installed
    try:
        import structlog

        return structlog
    finally:
        if hidden:
            del modules["rich"]


def configure() -> None:
    """Imports and configures structlog; a second call does nothing."""
    global _configured
    if _configured:
        return
    _configured = True
    structlog = _import_structlog()
    colors = sys.stderr.isatty()
    text = os.environ.get(_FORM, "text" if colors else "json") == "text"
    processors: list[Any] = [
        _add_process,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(
            fmt="%Y-%m-%d %H:%M:%S.%f" if text else "iso", utc=not text
        ),
    ]
    if text:
        # Python's own traceback, and no frames' locals: a log is no place for users' records.
        plain = structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    level = getattr(logging, os.environ.get(_LEVEL, "info").upper(), logging.INFO)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=_StandardError()),
        cache_logger_on_first_use=True,
    )


__all__ = ["configure", "get_logger", "set_level"]
