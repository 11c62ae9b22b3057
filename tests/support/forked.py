"""What a forked child finds in the objects that it inherited: every public call of each."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from shmbroker.errors import ForkedError

#: What a call needs that can't be called without arguments.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "alter_topic": ("t",),
    "create_topic": ("t",),
    "consumer": ("t",),
    "delete_group": ("g",),
    "delete_group_offsets": ("g", ["t"]),
    "describe_group": ("g",),
    "reset_group": ("g", "earliest"),
    "delete_records": ("t", {0: 1}),
    "delete_topic": ("t",),
    "describe_topic": ("t",),
    "offsets_for_time": (0,),
    "seek": (0,),
    "__exit__": (None, None, None),
    "__aexit__": (None, None, None),
}
SPECIAL = ("__enter__", "__exit__", "__next__", "__aenter__", "__aexit__")


def calls(thing: Any) -> dict[str, Callable[[], Any]]:
    """Every public method of `thing`, ready to be called; of a coroutine the first step."""
    return {
        name: partial(_run, method, ARGUMENTS.get(name, ()))
        for name, method in inspect.getmembers(thing, callable)
        if not name.startswith("_") or name in SPECIAL
    }


def _run(method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Calls it, and steps an awaitable once, in a loop of its own that is not the inherited one."""
    result = method(*arguments)
    if not inspect.isawaitable(result):
        return result

    async def main() -> Any:
        return await result

    coroutine = main()
    asyncio.events._set_running_loop(None)
    try:
        coroutine.send(None)
    finally:
        coroutine.close()
    raise AssertionError("it waits instead of saying ForkedError")


def not_refused(*things: Any) -> list[str]:
    """The calls that don't raise ForkedError with the way out in its text."""
    wrong = []
    for thing in things:
        for name, call in calls(thing).items():
            try:
                call()
            except ForkedError as error:
                if "shmbroker.connect()" in str(error):
                    continue
                wrong.append(f"{type(thing).__name__}.{name}: {error}")
            except BaseException as error:
                wrong.append(f"{type(thing).__name__}.{name}: {error!r}")
            else:
                wrong.append(f"{type(thing).__name__}.{name}: returned")
    return wrong
