"""Figures of a run over devices, as PNG: what matplotlib draws, and in which colour.

A system has one colour in every picture (`COLOURS`); a modelled device is hatched besides, and its
name says so. Axes have units. matplotlib is imported when a picture is drawn, not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from shmbroker.perf.devices.figures import value_text
from shmbroker.perf.devices.fio import BLOCKS, KIB, size_text
from shmbroker.perf.devices.results import DeviceResults, Results
from shmbroker.perf.devices.workloads import ACKS, PARTITIONS, VALUE_BYTES
from shmbroker.perf.drawing import bytes_of, figure_of, log_y, png_of, rate_text, stacked

#: By device, in the order of the run.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_HATCH: Final = "////"
_PERCENTILES: Final = ("p50", "p90", "p99", "p99.9", "p99.99")
Picture = Callable[[Results], "bytes | None"]


def _median(device: DeviceResults, case: str, scale: float) -> float | None:
    row = device.row(case)
    return None if row is None or row.median is None else row.median / scale


def throughput(results: Results) -> bytes | None:
    """Raw throughput by block size: reads, writes, durable writes; sequential and random."""
    if not any(device.cases.get("fio") for device in results.devices):
        return None
    figure, axes = figure_of(3)
    panels = (("read", "read", ""), ("write", "write, not synced", ""),
              ("write", "write, each durable", "-sync"))  # fmt: skip
    for axis, (way, title, suffix) in zip(axes, panels, strict=True):
        for n, device in enumerate(results.devices):
            for order, line, marker in (("sequential", "-", "o"), ("random", ":", "s")):
                found = [
                    (size, rate)
                    for size in BLOCKS
                    if (rate := _median(device, f"fio-{order}-{way}-{size // KIB}k{suffix}", 1e6))
                ]
                if found:
                    axis.plot(*zip(*found, strict=True), line, marker=marker, markersize=5,
                              color=COLOURS[n % len(COLOURS)], linewidth=1.8,
                              label=f"{device.title}, {order}")  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xticks(BLOCKS, [size_text(size) for size in BLOCKS], fontsize=8)
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("bytes a request")
    log_y(axes[0], "MB/s (logarithmic)")
    return png_of(figure, axes[0], 2)


def _bars(
    axis: Any,
    results: Results,
    cases: Sequence[tuple[str, str]],
    value: Callable[[DeviceResults, str], float | None],
    text: Callable[[float], str],
) -> None:
    """Groups by case, a bar a device in its colour, the value above it."""
    width = 0.8 / len(results.devices)
    for n, device in enumerate(results.devices):
        at = [k - 0.4 + width * (n + 0.5) for k in range(len(cases))]
        found = [value(device, case) for case, _ in cases]
        bars = axis.bar(at, [each or 0.0 for each in found], width * 0.92,
                        color=COLOURS[n % len(COLOURS)], label=device.title,
                        hatch=_HATCH if device.modelled else None, edgecolor="white")  # fmt: skip
        labels = ["none" if each is None else text(each) for each in found]
        for label in axis.bar_label(bars, labels, fontsize=7, padding=2):
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # over lines
    axis.set_xticks(range(len(cases)), [name for _, name in cases], fontsize=8)
    axis.margins(y=0.14)


def _decades(axis: Any) -> None:
    """A logarithmic axis from one power of ten to another, so that it has numbers."""
    low, high = axis.get_ylim()
    axis.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(1.6 * high)))


def order(results: Results) -> bytes | None:
    """Sequential against random, as a ratio: why a log is fast."""
    figure, axes = figure_of(1)
    cases = [
        (f"{way}-{size // KIB}k{suffix}", f"{name}\n{size_text(size)}")
        for way, name, suffix in (("read", "read", ""), ("write", "write", ""),
                                  ("write", "durable write", "-sync"))
        for size in (4 * KIB, 64 * KIB, 1024 * KIB)
    ]  # fmt: skip

    def ratio(device: DeviceResults, case: str) -> float | None:
        one, other = (_median(device, f"fio-{way}-{case}", 1.0) for way in ("sequential", "random"))
        return one / other if one and other else None

    if not any(ratio(device, case) for device in results.devices for case, _ in cases):
        return None
    _bars(axes[0], results, cases, ratio, rate_text)
    log_y(axes[0], "sequential / random throughput (logarithmic)")
    axes[0].axhline(1.0, color="#444444", linewidth=0.8)
    axes[0].set_xlabel("fio, one request at a time")
    return png_of(figure, axes[0])


def extents(results: Results) -> bytes | None:
    """O_DIRECT against the page cache, recycled against fresh segments."""
    figure, axes = figure_of(2, share_y=False)
    raw = [(f"fio-sequential-write-{size // KIB}k-sync{suffix}", f"{size_text(size)}\n{name}")
           for size in (64 * KIB, 1024 * KIB)
           for suffix, name in (("", "O_DIRECT"), ("-buffered", "page cache"))]  # fmt: skip
    broker = [("extents-direct-recycled", "O_DIRECT\nrecycled"),
              ("extents-direct-fresh", "O_DIRECT\nfresh"),
              ("extents-buffered-fresh", "page cache\nfresh")]  # fmt: skip
    panels = ((raw, 1e6, "bare sequential durable writes (fio)"),
              (broker, 1e6 / 1024, "the broker: 1 KiB values, durable"))  # fmt: skip
    if not any(device.row(case) for device in results.devices for case, _ in raw + broker):
        return None
    for axis, (cases, scale, title) in zip(axes, panels, strict=True):

        def rate(device: DeviceResults, case: str, scale: float = scale) -> float | None:
            return _median(device, case, scale)

        _bars(axis, results, cases, rate, rate_text)
        if cases is raw:
            log_y(axis, "MB/s (logarithmic)")
        else:
            axis.set_ylabel("MB/s of values")
        axis.set_title(title, fontsize=10)
    return png_of(figure, axes[0])


def produce(results: Results) -> bytes | None:
    """The broker's throughput in bytes of values, by size, acks and partitions."""
    rows = [row for device in results.devices for row in device.rows() if row.values]
    measured = {row.case.rpartition("-")[2] for row in rows if row.case.startswith("produce-")}
    there = [parts for parts in PARTITIONS if str(parts) in measured]
    if not there:
        return None
    figure, axes = stacked([2.0] * len(there), share_x=False)
    for axis, parts in zip(axes, there, strict=True):
        cases = [(f"produce-{size}-{acks}-{parts}", f"{value_text(size)}\n{acks}")
                 for size in VALUE_BYTES for acks in ACKS]  # fmt: skip

        def rate(device: DeviceResults, case: str) -> float | None:
            found = _median(device, case, 1e6)
            return None if found is None else found * int(case.split("-")[1])

        _bars(axis, results, cases, rate, rate_text)
        axis.set_title("1 partition" if parts == 1 else f"{parts} partitions", fontsize=10)
        axis.set_xlabel("bytes a value, acks")
        log_y(axis, "MB/s of values (log.)")
        _decades(axis)
    return png_of(figure, axes[0])


def share(results: Results) -> bytes | None:
    """The broker's durable rows as a share of the device's own durable writes."""
    figure, axes = figure_of(1)
    cases = [(f"produce-{size}-durable-{parts}",
              f"{value_text(size)}\n{parts} partition{'s' * (parts > 1)}")
             for size in VALUE_BYTES for parts in PARTITIONS]  # fmt: skip
    cases += [("extents-direct-recycled", "1 KiB\nrecycled"), ("cold-1024", "cold\ncatch-up")]

    def of(device: DeviceResults, case: str) -> float | None:
        row = device.row(case)
        return None if row is None or row.ratio is None else row.ratio * 100

    if not any(of(device, case) for device in results.devices for case, _ in cases):
        return None
    _bars(axes[0], results, cases, of, lambda value: f"{value:.0f} %")
    axes[0].axhline(100, color="#444444", linewidth=0.8)
    axes[0].set_ylabel("broker / device, % of bytes")
    axes[0].set_xlabel("send_many, durable; and catch-up against plain cold reads")
    return png_of(figure, axes[0])


def settings(results: Results) -> bytes | None:
    """Durable produce over 4 partitions under several settings."""
    names = list(dict.fromkeys(
        (row.case, row.figure.rpartition(": ")[2])
        for device in results.devices for row in device.cases.get("settings", []) if row.values
    ))  # fmt: skip
    if not names:
        return None
    figure, axes = figure_of(len(results.devices), share_y=False)
    cases = [(case, text.replace(", ", "\n").replace("configs/", "")) for case, text in names]
    for n, (axis, device) in enumerate(zip(axes, results.devices, strict=True)):
        rates = [_median(device, case, 1e6 / 1024) or 0.0 for case, _ in cases]
        bars = axis.barh([text for _, text in cases], rates, color=COLOURS[n % len(COLOURS)],
                         label=device.title, edgecolor="white",
                         hatch=_HATCH if device.modelled else None)  # fmt: skip
        axis.bar_label(bars, [rate_text(rate) for rate in rates], fontsize=7, padding=2)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", labelsize=7)
        axis.margins(x=0.12)
        axis.invert_yaxis()
        axis.set_title(device.title, fontsize=10)
        axis.set_xlabel("MB/s of 1 KiB values")
    return bytes_of(figure)


def latency(results: Results) -> bytes | None:
    """Percentiles of records that were due at fixed rates, a panel a class of acknowledgement."""
    panels = (("durable", "durable"), ("memory", "appended"))
    figure, axes = figure_of(len(panels))
    drawn = False
    for axis, (acks, title) in zip(axes, panels, strict=True):
        for n, device in enumerate(results.devices):
            rows = [row for row in device.cases.get("latency", []) if row.case.endswith(acks)]
            for row, line in zip(rows, ("-", "--", ":"), strict=False):
                if row.median is None:
                    continue
                there = {name[:-3]: us for name, us in row.more.items() if name != "max us"}
                found = {"p50": row.median} | there
                at = [_PERCENTILES.index(name) for name in found]
                rate = int(row.case.split("-")[1])
                axis.plot(at, list(found.values()), line, marker="o", markersize=4,
                          color=COLOURS[n % len(COLOURS)],
                          label=f"{device.title}, {rate:,} records/s")  # fmt: skip
                drawn = True
        axis.set_xticks(range(len(_PERCENTILES)), _PERCENTILES)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("percentile of the records")
    if not drawn:
        return None
    log_y(axes[0], "us from due until read (logarithmic)")
    _decades(axes[0])
    return png_of(figure, axes[0], 3)


def growth(results: Results) -> bytes | None:
    """Records a second as partitions, data and consumers grow."""
    panels: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
        ("partitions", "partitions", (("growth-partitions-", "send_many, 100 B, durable", "-"),)),
        ("data", "GB there already", (("growth-data-", "send_many, 1 KiB, durable", "-"),
                                      ("growth-read-", "the oldest values again", ":"))),
        ("consumers", "consumers, deliveries to all", (("fan-out-", "100 B, appended", "-"),)),
    )  # fmt: skip
    panels = tuple(panel for panel in panels if any(
        row.values and row.case.startswith(tuple(prefix for prefix, _, _ in panel[2]))
        for device in results.devices for row in device.rows()
    ))  # fmt: skip
    if not panels:
        return None
    figure, axes = figure_of(len(panels), share_y=False)
    for axis, (title, below, series) in zip(axes, panels, strict=True):
        ticks: set[float] = set()
        for n, device in enumerate(results.devices):
            for prefix, name, line in series:
                found = [
                    (float(row.case.removeprefix(prefix)), row.median / 1e6)
                    for row in device.rows()
                    if row.case.startswith(prefix) and row.median is not None
                ]
                if found:
                    ticks |= {at for at, _ in found}
                    axis.plot(*zip(*found, strict=True), line, marker="o", markersize=5,
                              color=COLOURS[n % len(COLOURS)],
                              label=f"{device.title}: {name}")  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(sorted(ticks), [f"{tick:,g}" for tick in sorted(ticks)], fontsize=8)
        axis.minorticks_off()
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
        axis.legend(fontsize=7, frameon=False, loc="lower left")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(below)
    axes[0].set_ylabel("million records/s")
    return bytes_of(figure)


#: file name, title, what is seen, how it is drawn
ALL: Final[tuple[tuple[str, str, str, Picture], ...]] = (
    ("throughput", "Throughput by block size",
     "fio, one request at a time. Lines: sequential; dots: random.", throughput),
    ("order", "Sequential against random",
     "How many times as fast a device is when requests follow one another.", order),
    ("extents", "O_DIRECT against the page cache, recycled against fresh segments",
     "Left the device alone, right the broker, whose retired segments become the next ones.",
     extents),
    ("produce", "What the broker takes in",
     "send_many until acknowledged. acks none and memory are bursts as large as a round: they are "
     "answered from memory, and the disk follows.", produce),
    ("share", "The broker's share of the device's limit",
     "In bytes of log, against bare durable writes measured around each round.", share),
    ("settings", "flush_depth and flush_max_bytes",
     "send_many, 1 KiB, durable, 4 partitions.", settings),
    ("latency", "End to end at fixed rates",
     "100 B, from when a record was due until another process has it; a stall is charged to all "
     "that waited behind it.", latency),
    ("growth", "As partitions, data and consumers grow",
     "A flat line is the promise: a record costs the same. Consumers: deliveries to all together.",
     growth),
)  # fmt: skip

__all__ = ["ALL", "COLOURS"]
