"""The table as a picture: Recall@10 and Recall@100 of every model. The one file that imports matplotlib."""

from pathlib import Path
from typing import Any

METRICS = {"recall_at_10": "Recall@10", "recall_at_100": "Recall@100"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG. Bars carry the paired interval of the difference from the reference; its own bar has none.

    Raises ImportError without matplotlib, OSError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models, reference = result["models"], result["reference"]
    names = list(models)
    figure = Figure(figsize=(11, 1.6 + 0.36 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (metric, title) in enumerate(METRICS.items(), 1):
        axes = figure.add_subplot(1, 2, number)
        widths = [models[name][metric] for name in names]
        axes.barh(names, widths, color=["#d95f02" if name == reference else "#7570b3" for name in names])
        for row, name in enumerate(names):
            end = widths[row]
            if name in result["intervals"]:
                interval = result["intervals"][name]["micro"][metric]
                base = models[reference][metric]
                end = max(end, base + interval["high"])
                axes.plot([base + interval["low"], base + interval["high"]], [row, row], color="black", linewidth=1.5)
            axes.text(end, row, f" {widths[row]:.3f}", va="center")
        axes.set_xlim(0, max(widths) * 1.18 or 1)
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_yticks(range(len(names)), names if number == 1 else [""] * len(names))
    figure.suptitle(
        f"{result['data']}, {result['protocol']}, {result['window']} window: {result['targets']:,} targets; "
        f"lines: 95 % of the difference from {reference}"
    )
    figure.savefig(path, format="png", dpi=120)
