"""`shmbroker doctor`: what this host offers a broker, what would be gained, and how.

Each check is a function of the places and the configuration that looks at one thing and changes
nothing (the data directory's file system is probed with one file, which goes again). A check that
can't look (a container without /sys) says so and is no failure. Runs in the process that asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from shmbroker.config import LoadedConfig, Places
from shmbroker.log.iomode import detect_io_mode
from shmbroker.workers import doctor_network
from shmbroker.workers.finding import Finding

_SHM: Final = Path("/dev/shm")
_SHM_MIN_BYTES: Final = 4 << 20
_SHM_GOOD_BYTES: Final = 3 << 30  # the automatic budget is a quarter of it, at most 1 GiB
_DISK_GOOD_BYTES: Final = 4 << 30
_FILES_GOOD: Final = 65536
_SYS_FUTEX_WAITV: Final = 449  # the same number on every architecture
_KERNEL_MIN: Final = (5, 4)  # pidfd_open, RWF_DSYNC, memfd seals
_LOGIND_ROOTS: Final = ("/usr/lib", "/etc")
_SLOW_CLOCKS: Final = frozenset({"hpet", "acpi_pm", "refined-jiffies", "jiffies"})


def examine(places: Places, loaded: LoadedConfig) -> Iterator[Finding]:
    """Every check in turn; see the module. Raises nothing."""
    for check in _CHECKS:
        try:
            yield check(places, loaded)
        except OSError as error:
            name = check.__name__.removeprefix("_").replace("_", " ")
            yield Finding(name, "good", f"can't be looked at here ({error.strerror or error})")


def _kernel(_places: Places, _loaded: LoadedConfig) -> Finding:
    release = os.uname().release
    numbers = re.findall(r"\d+", release)[:2]
    version = (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, 0)
    found = f"Linux {release}"
    if version < _KERNEL_MIN:
        how = "a kernel of 5.4 or later; 6.1 or later is best"
        return Finding("kernel", "stops", found, "processes are watched through pidfds", how)
    if version < (6, 1):
        gain = "the kernel says which alignment O_DIRECT needs (statx, 6.1)"
        return Finding("kernel", "better", found, gain, "a kernel of 6.1 or later")
    return Finding("kernel", "good", found)


def _futex_waitv(_places: Places, _loaded: LoadedConfig) -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_SYS_FUTEX_WAITV, None, 0, 0, None, 0)
    if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
        return Finding(
            "futex_waitv",
            "better",
            "not there (or a seccomp filter forbids it)",
            "a consumer of several partitions is woken by its own, not by every append",
            "Linux 5.16 or later; in a container a seccomp profile that allows futex_waitv",
        )
    return Finding("futex_waitv", "good", "there")


def _dev_shm(_places: Places, loaded: LoadedConfig) -> Finding:
    room = os.statvfs(_SHM)
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    budget = loaded.config.memory.budget_in(free)
    found = f"{_size(size)}, {_size(free)} free; the broker's budget is {_size(budget)}"
    how = "mount -o remount,size=4G /dev/shm (containers: --shm-size=4g)"
    if free < max(_SHM_MIN_BYTES, budget):
        return Finding("/dev/shm", "stops", found, "the rings have no room", how)
    if free < _SHM_GOOD_BYTES and loaded.config.memory.budget_bytes == "auto":
        gain = "larger rings: more partitions at full speed"
        return Finding("/dev/shm", "better", found, gain, how)
    return Finding("/dev/shm", "good", found)


def _data_directory(places: Places, _loaded: LoadedConfig) -> Finding:
    there = _existing(places.data_dir)
    free = shutil.disk_usage(there).free
    found = f"{places.data_dir}, {_size(free)} free"
    if not os.access(there, os.W_OK | os.X_OK):
        how = f"chown {os.getuid()} {there}, or choose another with --data-dir"
        return Finding("data directory", "stops", found, "it can't be written to", how)
    if free < _DISK_GOOD_BYTES:
        gain = "segments are reserved in large pieces, which are less work"
        return Finding("data directory", "better", found, gain, "free space on its disk")
    return Finding("data directory", "good", found)


def _direct_io(places: Places, _loaded: LoadedConfig) -> Finding:
    mode = detect_io_mode(str(_existing(places.data_dir)))
    if mode.direct:
        return Finding("O_DIRECT", "good", f"works, in units of {mode.unit} bytes")
    return Finding(
        "O_DIRECT",
        "better",
        f"not used: {mode.reason}",
        "5 to 10 times the write rate, and retired segments are used again",
        "a data directory on ext4 or xfs on a local disk",
    )


def _io_scheduler(places: Places, _loaded: LoadedConfig) -> Finding:
    queue = _queue(_existing(places.data_dir))
    if queue is None:
        return Finding("I/O scheduler", "good", "no block device of its own")
    words = (queue / "scheduler").read_text().split()
    active = next((w.strip("[]") for w in words if w.startswith("[")), words[0] if words else "?")
    rotational = (queue / "rotational").read_text().strip() == "1"
    kind = ", says that it is rotational" if rotational else ""
    found = f"{active} on {queue.parent.name}{kind}"
    if active in ("bfq", "cfq"):
        return Finding(
            "I/O scheduler",
            "better",
            found,
            "lower and steadier latency of durable writes",
            f"echo none > {queue}/scheduler (mq-deadline for rotating disks)",
        )
    return Finding("I/O scheduler", "good", found)


def _memlock(_places: Places, _loaded: LoadedConfig) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else _size(soft)
    swaps = Path("/proc/swaps").read_text().splitlines()[1:]
    if not swaps:
        return Finding("memlock", "good", f"limit {limit}; no swap, so rings stay in memory")
    return Finding(
        "memlock",
        "better",
        f"limit {limit}; {len(swaps)} swap area(s), and rings may be swapped out",
        "no pause of a disk read when an idle ring is used again",
        "swapoff -a, or vm.swappiness=1; in a unit: MemorySwapMax=0",
    )


def _cores(_places: Places, loaded: LoadedConfig) -> Finding:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _quota()
    found = f"{usable} of {there} usable" + (f", cgroup quota {quota:g}" if quota else "")
    if quota is not None and quota < usable:
        return Finding(
            "cores",
            "better",
            found,
            "no pauses: who spins uses up the quota and is then stopped for milliseconds",
            'cpus in whole numbers (cpuset, AllowedCPUs=) instead of a quota, or idle = "park"',
        )
    if usable < 3:
        gain = "a core for a writer, one for a producer, one for a consumer"
        return Finding("cores", "better", found, gain, "3 cores or more")
    return Finding("cores", "good", f"{found}; writers: {loaded.config.broker.writers}")


def _cpu_frequency(_places: Places, _loaded: LoadedConfig) -> Finding:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if not path.exists():
        return Finding("cpu frequency", "good", "not governed by this system")
    governor = path.read_text().strip()
    if governor in ("powersave", "ondemand", "conservative"):
        gain = "wake-ups of 20 to 50 us instead of up to 200 us after a pause"
        how = "cpupower frequency-set -g performance"
        return Finding("cpu frequency", "better", f"governor {governor}", gain, how)
    return Finding("cpu frequency", "good", f"governor {governor}")


def _remove_ipc(_places: Places, _loaded: LoadedConfig) -> Finding:
    if not Path("/run/systemd/system").is_dir():
        return Finding("RemoveIPC", "good", "no systemd here")
    value = _logind_setting("RemoveIPC")
    if os.getuid() < 1000 or value in ("no", "0", "false", "off"):
        why = f"RemoveIPC={value}" if value else "a system user, whose IPC stays"
        return Finding("RemoveIPC", "good", why)
    name = str(os.getuid())
    with contextlib.suppress(KeyError):
        import pwd

        name = pwd.getpwuid(os.getuid()).pw_name
    if Path(f"/var/lib/systemd/linger/{name}").exists():
        return Finding("RemoveIPC", "good", "this user lingers, so shared memory stays")
    return Finding(
        "RemoveIPC",
        "better",
        f"RemoveIPC={value or 'yes, by default'}",
        "rings survive the last logout of this user; now they are removed under the broker",
        f"RemoveIPC=no in /etc/systemd/logind.conf, or: loginctl enable-linger {name}",
    )


def _clock(_places: Places, _loaded: LoadedConfig) -> Finding:
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    source = path.read_text().strip()
    if source in _SLOW_CLOCKS:
        gain = "reading the time takes 20 ns instead of a microsecond, at every send()"
        how = "echo tsc > " + str(path)
        return Finding("clock", "better", source, gain, how)
    return Finding("clock", "good", source)


def _open_files(_places: Places, _loaded: LoadedConfig) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} open files (may be raised to {hard})"
    if soft < 256:
        return Finding("open files", "stops", found, "sockets and segments", "ulimit -n 65536")
    if hard < _FILES_GOOD and soft < _FILES_GOOD:
        gain = "room for thousands of partitions: each holds up to three files open"
        return Finding("open files", "better", found, gain, "LimitNOFILE=65536, or ulimit -n 65536")
    return Finding("open files", "good", found)


def _runtime_directory(places: Places, _loaded: LoadedConfig) -> Finding:
    found = str(places.runtime_dir)
    there = _existing(places.runtime_dir)
    if not os.access(there, os.W_OK | os.X_OK):
        how = "set XDG_RUNTIME_DIR to a directory of yours"
        return Finding("runtime directory", "stops", found, "no sockets can be made there", how)
    if not os.environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        gain = "a place that is this user's alone and is cleared at logout"
        how = "log in through systemd-logind, or set XDG_RUNTIME_DIR for broker and clients alike"
        return Finding("runtime directory", "better", f"{found} (no XDG_RUNTIME_DIR)", gain, how)
    return Finding("runtime directory", "good", found)


_CHECKS: Final[tuple[Callable[[Places, LoadedConfig], Finding], ...]] = (
    _kernel, _futex_waitv, _dev_shm, _data_directory, _runtime_directory, _direct_io, _io_scheduler,
    _memlock, _open_files, _cores, _cpu_frequency, _clock, _remove_ipc,
    doctor_network.listen, doctor_network.keys, doctor_network.connections,
)  # fmt: skip


def _existing(path: Path) -> Path:
    """The directory itself, or the nearest one above that is there."""
    while not path.is_dir():
        path = path.parent
    return path


def _queue(directory: Path) -> Path | None:
    """`/sys/…/queue` of the disk that a directory is on; None for file systems without one."""
    number = os.stat(directory).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        return None
    for at in (device.resolve(), device.resolve().parent):  # a partition's disk is above it
        if (at / "queue" / "scheduler").exists():
            return at / "queue"
    return None


def _quota() -> float | None:
    """Cores' worth of time that the cgroup allows; None: no limit."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].splitlines()[0]
        for at in (Path("/sys/fs/cgroup") / group.lstrip("/"), Path("/sys/fs/cgroup")):
            if (at / "cpu.max").exists():
                quota, period = (at / "cpu.max").read_text().split()
                return None if quota == "max" else int(quota) / int(period)
    return None


def _logind_setting(name: str) -> str:
    """The value that logind uses: the last one in the files' order; "" where none is set."""
    main = [Path(root) / "systemd/logind.conf" for root in _LOGIND_ROOTS]
    drop_ins = [file for at in main for file in sorted(at.parent.glob("logind.conf.d/*.conf"))]
    found = ""
    for path in [*main, *drop_ins]:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                key, equals, value = line.partition("=")
                if equals and key.strip() == name:
                    found = value.strip().lower()
    return found


def _size(n: int) -> str:
    return f"{n / (1 << 30):.1f} GiB" if n >= 1 << 30 else f"{n / (1 << 20):.0f} MiB"


__all__ = ["Finding", "examine"]
