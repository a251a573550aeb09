"""The figures of a run as Markdown, for docs/performance.md."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

LEVELS = ("saturation", "half", "quarter")


def markdown(found: dict[str, Any]) -> str:
    """Tables of whatever parts the run had, under a line that says where and with what."""
    parts = [_where(found)]
    if "transport" in found:
        parts.append(_transport(found))
    if "paced_p99_ms" in found:
        parts.append(
            f"Paced: {found['paced_messages']:,} messages at 500 a second, 2 ms of work per batch: "
            f"p50 {found['paced_p50_ms']} ms, p99 {found['paced_p99_ms']} ms."
        )
    if "activity" in found:
        parts.append(_activity(found["activity"]))
    if "recall" in found:
        parts += [_recall(int(items), one) for items, one in found["recall"].items()]
    if "waiting" in found:
        parts.append(_waiting(found))
    if "overload" in found:
        parts.append(_overload(found))
    if "seen" in found:
        parts.append(_seen(found["seen"]))
    if "worker_memory_mb" in found:
        parts.append(f"The most memory that a worker held: {found['worker_memory_mb']:.0f} MiB.")
    return "\n\n".join(parts) + "\n"


def _where(found: dict[str, Any]) -> str:
    machine = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    servers = ", ".join(f"{name} {version}" for name, version in found["servers"].items())
    return (
        f"{machine['date']}, {machine['cores']} cores of a {machine['processor']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}; {servers}; {packages}. The run took {found['took_s']} s."
    )


def _transport(found: dict[str, Any]) -> str:
    names = {"raw": "raw `getmany` + `send_batch`", "batch": "batch transport"}
    rows = [
        (
            names[how],
            f"{one['cpu_us_per_message']}",
            f"{one['messages_per_s_per_core']:,}",
            f"{one['messages_per_s']:,}",
            _sizes(one["batch_sizes"]),
        )
        for how, one in found["transport"].items()
    ]
    header = ("300-byte messages passed on", "CPU us/message", "messages/s/core", "messages/s", "batches by size")
    return f"{_table(header, rows)}\n\n`transport_ratio` {found['transport_ratio']}, the median of five rounds."


def _activity(one: dict[str, Any]) -> str:
    return (
        f"Activity, 100,000 users with full histories, Zipf: {one['activity_events_per_s_per_core']:,} events a second "
        f"of CPU ({one['cpu_us_per_event']} us each), {one['events_per_s']:,} events a second beside the broker and "
        f"Redis; batches by size: {_sizes(one['batch_sizes'])}; {one['peak_mb']:.0f} MiB."
    )


def _recall(items: int, one: dict[str, Any]) -> str:
    catalogue, loop, fresh = one["catalogue"], one["loop"], one["freshness"]
    rows = [
        (
            name,
            f"{level['requests_per_s']:,.0f}",
            "" if name == "saturation" else f"{level['p50_ms']} / {level['p99_ms']}",
            f"{level['cpu_us_per_request']}",
            f"{level['answered']:,} of {level['requests']:,}",
            _sizes(level["batch_sizes"]),
        )
        for name, level in ((name, one[name]) for name in LEVELS)
    ]
    sizes, ratios = _sizes(one["saturation"]["batch_sizes"]), one["worker_cpu_ratios"]
    rows.append(("without Kafka", f"{loop['requests_per_s']:,.0f}", "", f"{loop['cpu_us_per_request']}", "", sizes))
    header = ("load", "requests/s", "p50 / p99 ms", "worker CPU us/request", "answered", "batches by size")
    return (
        f"**{items:,} items** ({catalogue['index_type']}, segments: {catalogue['segments']}), top 100, users with 64 "
        f"events:\n\n{_table(header, rows)}\n\n"
        f"`worker_cpu_ratio` {one['worker_cpu_ratio']}, the median of {len(ratios)} rounds (from {ratios[0]} to "
        f"{ratios[-1]}). At half load: click to changed list p50 / p99 "
        f"{fresh['click_to_change_p50_ms']} / {fresh['click_to_change_p99_ms']} ms "
        f"({fresh['click_to_change_probes']} clicks), item update to retrievable "
        f"{fresh['item_to_retrievable_p50_ms']} / {fresh['item_to_retrievable_p99_ms']} ms "
        f"({fresh['item_to_retrievable_probes']} updates). Streaming the catalogue in: {catalogue['items_per_s']:,} "
        f"items a second, {catalogue['cpu_us_per_item']} us of the worker's CPU each. Peak memory, MiB: "
        + ", ".join(f"{kind} {mb:.0f}" for kind, mb in one["peak_mb"].items())
        + "."
    )


def _waiting(found: dict[str, Any]) -> str:
    one = found["waiting"]
    ratios = one["ratios"]
    return (
        f"Others beside one request that waits for its event: p50 {one['p50_ms_beside']} ms, without it "
        f"{one['p50_ms_without']} ms. `waiter_p50_ratio` {found['waiter_p50_ratio']}, the median of {len(ratios)} "
        f"rounds (from {ratios[0]} to {ratios[-1]}; {one['waited']} have waited). The worker's CPU time beside it: "
        f"{median(one['cpu_ratios']):.3f} of that without."
    )


def _overload(found: dict[str, Any]) -> str:
    one = found["overload"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in sorted(one["statuses"].items()))
    return (
        f"Overload: {one['offered_per_s']:,.0f} requests a second where {one['saturation_per_s']:,.0f} can be done; "
        f"{one['answered']:,} of {one['requests']:,} answered ({statuses}). `goodput_ratio` {found['goodput_ratio']}."
    )


def _seen(one: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{one['readers'][name]}",
            " / ".join(f"{count:,}" for count in one["seen_items"][name]),
            f"{one[name]['p50_ms']} / {one[name]['p99_ms']}",
        )
        for name in ("light", "heavy")
    ]
    header = ("readers", "number", "seen items: least / median / most", "p50 / p99 ms")
    found = one["p50_ratios"]
    return (
        f"**MovieLens-1M, {one['items']:,} items** ({one['index_type']}), top 100:\n\n{_table(header, rows)}\n\n"
        f"`p50_ratio` {one['p50_ratio']}, the median of {len(found)} rounds (from {found[0]} to {found[-1]}). Of the "
        f"heavy readers, {one['households']} of whom are two users under one id: `short_lists` {one['short_lists']}; "
        f"`recall_at_100` {one['recall_at_100']}, `recall_at_100_exact` {one['recall_at_100_exact']} "
        f"({one['targets']:,} held-out positives); `overlap_at_100` {one['overlap_at_100']}."
    )


def _sizes(batch_sizes: dict[str, int]) -> str:
    """How many batches of up to so many records."""
    return ", ".join(f"{count} of <= {size}" for size, count in batch_sizes.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
