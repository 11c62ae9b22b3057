"""Where an instance keeps its things: data, sockets, configuration, shared memory.

Owns: the names of instances and the rules by which every process, broker and client alike, finds
the same places from the same name. Nothing is made before it is asked for.

    data           --data-dir, SHMBROKER_DATA_DIR, $XDG_DATA_HOME/shmbroker/<instance>
    sockets        $XDG_RUNTIME_DIR/shmbroker/<instance>, else /tmp/shmbroker-<uid>/<instance>
    configuration  --config, SHMBROKER_CONFIG, $XDG_CONFIG_HOME/shmbroker/<instance>.toml if there
    keys           listen.keys, $XDG_CONFIG_HOME/shmbroker/<instance>.keys
    shared memory  /shmb-<uid>-<8 hex of the data directory's id>-…

A socket's name may have 107 bytes (`sun_path`), a runtime directory may be longer. Then the socket
is reached by a short name: `/tmp/shmbroker-<uid>/~<16 hex>` is a symlink to the runtime directory.
The broker makes it, and so does a client that has a /tmp of its own, and the kernel resolves it in
bind() and connect(), so it serves ZeroMQ's `ipc://` and plain Unix sockets alike.
(`/proc/self/fd/N/name` would serve only the process that holds the descriptor, and could be handed
to nobody.)

An absolute path in the place of a name is an address: the runtime directory itself, for a broker
that has no name and whose data lies beside (`embedded.py`). `connect(address)` and `--instance
ADDRESS` reach it from any process of this user.

Invariants: every directory here is owned by this user and closed to others (0700), or it is
refused; an instance's name never begins with `~`, so links and instances don't meet.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shmbroker.errors import ConfigError

DEFAULT_INSTANCE: Final = "default"
SUN_PATH_MAX_BYTES: Final = 107  # sizeof(sockaddr_un.sun_path) without the closing NUL
_LONGEST_SOCKET: Final = "remote-control"
_INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TMP: Final = Path("/tmp")  # not $TMPDIR: broker and clients must agree


@dataclass(frozen=True, slots=True)
class Places:
    """The places of one instance; make it with `Places.find`."""

    instance: str
    data_dir: Path
    runtime_dir: Path
    config_file: Path | None = None  # None: no file; what was asked for by name is never None
    tmp_dir: Path = _TMP
    keys_dir: Path = Path()  # unless `listen.keys` says another

    @classmethod
    def find(
        cls,
        instance: str | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        tmp_dir: Path = _TMP,
    ) -> Places:
        """The places of `instance` (else SHMBROKER_INSTANCE, else "default"), arguments first.

        Raises ConfigError when the name can't be one. Makes nothing.
        """
        env = os.environ if env is None else env
        if instance is None:
            name, said = env.get("SHMBROKER_INSTANCE") or DEFAULT_INSTANCE, "SHMBROKER_INSTANCE"
        else:
            name, said = instance, "--instance"
        if name.startswith("/"):
            return cls._at(_absolute(name), data_dir, config, tmp_dir)
        if not _INSTANCE.fullmatch(name):
            raise ConfigError(
                f"{name!r} can't be an instance's name",
                file=said,
                allowed="1 to 64 of a-z A-Z 0-9 . _ - beginning with a letter or digit",
            )
        data = data_dir or env.get("SHMBROKER_DATA_DIR")
        runtime = _xdg(env, "XDG_RUNTIME_DIR")
        return cls(
            instance=name,
            data_dir=_absolute(data) if data else _home(env, "DATA", ".local/share") / name,
            runtime_dir=(
                runtime / "shmbroker" / name if runtime else _private_root(tmp_dir) / name
            ),
            config_file=_config_file(name, config, env),
            tmp_dir=tmp_dir,
            keys_dir=_home(env, "CONFIG", ".config") / f"{name}.keys",
        )

    @classmethod
    def _at(
        cls,
        runtime_dir: Path,
        data_dir: str | os.PathLike[str] | None,
        config: str | os.PathLike[str] | None,
        tmp_dir: Path,
    ) -> Places:
        """Those of an address: nothing of the environment counts but what was asked for."""
        return cls(
            instance=str(runtime_dir),
            data_dir=_absolute(data_dir) if data_dir else runtime_dir.parent / "data",
            runtime_dir=runtime_dir,
            config_file=_absolute(config) if config else None,
            tmp_dir=tmp_dir,
            keys_dir=runtime_dir.parent / "keys",
        )

    @property
    def is_address(self) -> bool:
        """Whether the instance is named by its runtime directory."""
        return self.instance.startswith("/")

    @property
    def token_file(self) -> Path:
        """What programs of this user show that reach the broker over the network."""
        return self.runtime_dir / "token"

    def make_runtime_dir(self) -> Path:
        """Makes the runtime directory, 0700, and returns it; refuses one that is not ours alone."""
        if self.runtime_dir.parent == _private_root(self.tmp_dir):
            _private_dir(self.runtime_dir.parent)
        try:
            self.runtime_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _private_dir(self.runtime_dir)
        except OSError as error:
            raise ConfigError(
                f"can't be made: {error.strerror}; set XDG_RUNTIME_DIR to a directory of yours",
                file=str(self.runtime_dir),
            ) from None

    def socket_path(self, name: str) -> str:
        """A path of at most 107 bytes to the socket `name` of this instance.

        The same for every process of this user. A long one leads through the short link, which is
        made where it is missing and the socket is there (a container may have a /tmp of its own);
        raises FileNotFoundError where neither is: who only looks for a broker that is gone leaves
        nothing behind.
        """
        path = self.runtime_dir / name
        if not self._too_long(path):
            return str(path)
        link = self._short_link()
        if not os.path.lexists(
            link
        ):  # never made again where it was: the broker may just remove it
            if path.exists():
                self._link()
            if not path.exists():  # it has gone, and would not know of our link
                self.remove_short_link()
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._check_link()
        return str(link / name)

    def make_short_link(self) -> None:
        """What the broker does before it binds its sockets; nothing where their paths are short."""
        if self._too_long(self.runtime_dir / _LONGEST_SOCKET):
            self._link()

    def remove_short_link(self) -> None:
        """What it does when they are gone."""
        self._short_link().unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # absent, or another instance is still there
            _private_root(self.tmp_dir).rmdir()

    def _link(self) -> None:
        link = self._short_link()
        _private_dir(link.parent)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(self.runtime_dir)
        self._check_link()

    def _check_link(self) -> None:
        """FileNotFoundError when it has gone meanwhile; ConfigError when it is another's."""
        link = self._short_link()
        if os.readlink(link) != str(self.runtime_dir):
            raise ConfigError(
                f"leads to {os.readlink(link)} and not to {self.runtime_dir}; remove it",
                file=str(link),
            )

    @staticmethod
    def _too_long(path: Path) -> bool:
        return len(os.fsencode(path)) > SUN_PATH_MAX_BYTES

    def zmq_address(self, name: str) -> str:
        """The same socket as ZeroMQ writes it."""
        try:
            return f"ipc://{self.socket_path(name)}"
        except FileNotFoundError:  # ZeroMQ tries again, and the next broker makes the link
            return f"ipc://{self._short_link() / name}"

    def remove_runtime_dir(self) -> None:
        """Removes the runtime directory and the short link, after the broker; absent is fine."""
        with contextlib.suppress(FileNotFoundError):
            for entry in self.runtime_dir.iterdir():
                entry.unlink(missing_ok=True)
            self.runtime_dir.rmdir()
        self.remove_short_link()
        for parent in {self.runtime_dir.parent, _private_root(self.tmp_dir)}:
            with contextlib.suppress(OSError):  # absent, or another instance is still there
                parent.rmdir()

    def _short_link(self) -> Path:
        digest = hashlib.sha256(os.fsencode(self.runtime_dir)).hexdigest()[:16]
        return _private_root(self.tmp_dir) / f"~{digest}"


def shm_prefix(data_dir_id: str, uid: int | None = None) -> str:
    """`/shmb-<uid>-<8 hex>`: how the shared memory of a data directory begins, of this user's."""
    digest = hashlib.sha256(data_dir_id.encode()).hexdigest()[:8]
    return f"/shmb-{os.getuid() if uid is None else uid}-{digest}"


def _private_root(tmp_dir: Path) -> Path:
    return tmp_dir / f"shmbroker-{os.getuid()}"


def _private_dir(path: Path) -> Path:
    """`path` as a directory that is ours and closed to others; /tmp is everybody's, so look."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"is no directory of uid {os.getuid()} (owner: {found.st_uid}); remove it, or set "
            "XDG_RUNTIME_DIR to a directory of yours",
            file=str(path),
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path


def _config_file(
    instance: str, config: str | os.PathLike[str] | None, env: Mapping[str, str]
) -> Path | None:
    asked = config or env.get("SHMBROKER_CONFIG")
    if asked:
        return _absolute(asked)
    usual = _home(env, "CONFIG", ".config") / f"{instance}.toml"
    return usual if usual.exists() else None


def _home(env: Mapping[str, str], kind: str, default: str) -> Path:
    base = _xdg(env, f"XDG_{kind}_HOME")
    if base is None:
        home = env.get("HOME")
        base = (Path(home) if home else Path.home()) / default
    return base / "shmbroker"


def _xdg(env: Mapping[str, str], name: str) -> Path | None:
    """The XDG specification: a relative path is to be ignored."""
    value = env.get(name, "")
    return Path(value) if value.startswith("/") else None


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))  # symlinks stay as they were given


__all__ = ["DEFAULT_INSTANCE", "SUN_PATH_MAX_BYTES", "Places", "shm_prefix"]
