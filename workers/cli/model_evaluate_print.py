"""The table of `recall model evaluate` for people: figures, groups, intervals, and bars of plain text."""

from typing import Any

from rich.console import Console

from workers.cli.console import cells, columns, harmless, results

BAR = 40
GROUPS = ("warm", "new", "new<=5")


def print_table(result: dict[str, Any]) -> None:
    """Print everything that the report holds."""
    console = results()
    window = f"{result['protocol']}, {result['window']} window"
    console.print(
        harmless(f"{result['data']}, {window}: {result['requests']:,} requests of {result['users']:,} users, ")
        + f"{result['targets']:,} targets, {result['items']:,} items"
    )
    _figures(console, result)
    _intervals(console, result)
    for name, counts in result.get("streams", {}).items():
        console.print(
            harmless(f"{name}: {counts['requests']:,} requests over Kafka, {counts['unanswered']:,} unanswered, ")
            + f"{counts['asked_again']:,} asked again, p50 {counts['p50_ms']} ms, p99 {counts['p99_ms']} ms"
        )
    _bars(console, result, "recall_at_100")


def _figures(console: Console, result: dict[str, Any]) -> None:
    table = columns(
        "model", "R@10", "R@50", "R@100", "N@10", "N@100", "macro R@10", "R@100",
        *(f"{group} R@10/100" for group in GROUPS), "coverage", "ARP", "fit s", "rank s",
    )  # fmt: skip
    for name, found in result["models"].items():
        groups = (found["groups"][group] for group in GROUPS)
        row = [f"{found[metric]:.4f}" for metric in _metrics(found)]
        row += [f"{found['macro'][metric]:.4f}" for metric in ("recall_at_10", "recall_at_100")]
        row += [f"{group['recall_at_10']:.3f}/{group['recall_at_100']:.3f}" for group in groups]
        row += [f"{found['coverage_at_100']:.3f}", f"{found['arp_at_100']:.0f}"]
        table.add_row(*cells(name, *row, f"{found['fit_s']:.1f}", f"{found['rank_s']:.1f}"))
    console.print(table)
    console.print(f"ARP: mean number of target events of a shown item; of the targets {result['targets_arp']:.0f}")


def _intervals(console: Console, result: dict[str, Any]) -> None:
    if not result["intervals"]:
        return
    console.print()
    console.print(harmless(f"difference from {result['reference']}, 95 % interval over users"))
    table = columns("model", "R@10", "R@100", "N@10", "macro R@10", "macro R@100")
    for name, means in result["intervals"].items():
        chosen = [means["micro"][metric] for metric in ("recall_at_10", "recall_at_100", "ndcg_at_10")]
        chosen += [means["macro"][metric] for metric in ("recall_at_10", "recall_at_100")]
        row = [f"{each['difference']:+.4f} [{each['low']:+.4f}, {each['high']:+.4f}]" for each in chosen]
        table.add_row(*cells(name, *row))
    console.print(table)


def _bars(console: Console, result: dict[str, Any], metric: str) -> None:
    """One bar a model; the longest is BAR characters."""
    console.print(f"\n{metric}")
    models = result["models"]
    greatest = max((found[metric] for found in models.values()), default=0) or 1
    width = max(len(name) for name in models)
    for name, found in models.items():
        bar = "#" * round(BAR * found[metric] / greatest)
        console.print(harmless(f"{name:<{width}}  {bar:<{BAR}}  {found[metric]:.4f}"))


def _metrics(found: dict[str, Any]) -> list[str]:
    return [name for name in found if name.startswith(("recall_at_", "ndcg_at_"))]
