"""Arrow data made by hand: whatever the three structs can say, also what no library would.

`HandMade` counts its releases. Keep it as long as what it made.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

_RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_GET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_SAY = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Schema(ctypes.Structure):
    """struct ArrowSchema."""

    _fields_ = [
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("flags", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


class Array(ctypes.Structure):
    """struct ArrowArray."""

    _fields_ = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.c_void_p),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


class Stream(ctypes.Structure):
    """struct ArrowArrayStream."""

    _fields_ = [
        ("get_schema", ctypes.c_void_p),
        ("get_next", ctypes.c_void_p),
        ("get_last_error", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class HandMade:
    """One array, by `__arrow_c_array__`; `made` and `released` count structs."""

    def __init__(
        self,
        form: bytes | None,
        buffers: Sequence[bytes | None],
        length: int,
        *,
        offset: int = 0,
        null_count: int = 0,
        no_buffers: int = 0,
        **fields: int,
    ) -> None:
        self._kept: list[Any] = [form, *buffers]
        self.made = self.released = 0
        self.buffers = [
            None if b is None else ctypes.create_string_buffer(b, max(1, len(b))) for b in buffers
        ]
        pointers = [None if b is None else ctypes.addressof(b) for b in self.buffers]
        self._pointers = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
        self._form = form
        self._fields: dict[str, int] = {
            "length": length,
            "offset": offset,
            "null_count": null_count,
            "n_buffers": len(buffers),
            "buffers": 0 if no_buffers else ctypes.addressof(self._pointers),
            **fields,
        }

        def release(at: int, kind: type[ctypes.Structure]) -> None:
            self.released += 1
            kind.from_address(at).release = None

        self._release_schema = _RELEASE(lambda at: release(at, Schema))
        self._release_array = _RELEASE(lambda at: release(at, Array))

    def _schema(self) -> Schema:
        self.made += 1
        at = ctypes.cast(self._release_schema, ctypes.c_void_p).value
        return Schema(format=self._form, release=at)

    def _array(self) -> Array:
        self.made += 1
        at = ctypes.cast(self._release_array, ctypes.c_void_p).value
        return Array(**{"release": at, **self._fields})

    def _capsule(self, struct: ctypes.Structure, name: bytes) -> object:
        self._kept.append((struct, name))
        found: object = _new_capsule(ctypes.addressof(struct), name, None)
        return found

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return (
            self._capsule(self._schema(), b"arrow_schema"),
            self._capsule(self._array(), b"arrow_array"),
        )


class HandMadeStream:
    """The same array `times` times by `__arrow_c_stream__`, then `error` (an errno; 0: the end)."""

    def __init__(
        self, array: HandMade, times: int, error: int = 0, says: bytes | None = None
    ) -> None:
        self.array, self.left = array, times
        self.released = 0
        self._says = None if says is None else ctypes.create_string_buffer(says)

        def schema(_stream: int, out: int) -> int:
            ctypes.memmove(out, ctypes.byref(array._schema()), ctypes.sizeof(Schema))
            return 0

        def following(_stream: int, out: int) -> int:
            if self.left == 0:
                Array.from_address(out).release = None
                return error
            self.left -= 1
            ctypes.memmove(out, ctypes.byref(array._array()), ctypes.sizeof(Array))
            return 0

        def said(_stream: int) -> int | None:
            return None if self._says is None else ctypes.addressof(self._says)

        def release(at: int) -> None:
            self.released += 1
            Stream.from_address(at).release = None

        self._calls = (_GET(schema), _GET(following), _SAY(said), _RELEASE(release))
        self._stream = Stream(*(ctypes.cast(c, ctypes.c_void_p).value for c in self._calls))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return _new_capsule(ctypes.addressof(self._stream), b"arrow_array_stream", None)


def offsets(*values: int, code: str = "i") -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


# Arrays of which one element can't be, as HandMade's first arguments.
BAD_ELEMENTS: dict[str, tuple[bytes, list[bytes | None], int]] = {
    "offsets that fall": (b"z", [None, offsets(0, 4, 2, 5), b"abcde"], 3),
    "an offset before the first": (b"z", [None, offsets(2, 1, 3), b"abc"], 2),
    "an offset behind the last": (b"z", [None, offsets(0, 1 << 30, 3), b"abc"], 2),
    "large offsets that fall": (b"Z", [None, offsets(0, 1 << 40, 2, code="q"), b"abc"], 2),
    "a negative view": (b"vz", [None, struct.pack("<i12x", -1), b"abc", offsets(3, code="q")], 1),
    "a view of no buffer": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 1, 0), b"a" * 13, offsets(13, code="q")],
        1,
    ),
    "a view behind its buffer": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 0, 1), b"a" * 13, offsets(13, code="q")],
        1,
    ),
    "a view before its buffer": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 0, -1), b"a" * 13, offsets(13, code="q")],
        1,
    ),
    "a view of the buffer that is missing": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 0, 0), None, offsets(13, code="q")],
        1,
    ),
}
