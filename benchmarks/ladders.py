"""Tables and the chart of the ladder: every rung's time and what it costs, dense and pruned."""

from __future__ import annotations

from typing import Any

from compared import grid

from patchranking.report.svg import chart

_TICKS = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500)

Rows = list[dict[str, Any]]


def table(results: dict[str, Any]) -> str:
    """Speed and quality of every rung at every share; then, by batch size, pruned beside dense."""
    rows = results["rows"]
    stock, batches = rows[0], results["batches"]
    shares = sorted({row["macs"] for row in rows}, reverse=True)
    labelled = stock["top1"] is not None
    what = "change of top-1 in points / cosine" if labelled else "cosine"
    told = (
        f"**{results['dataset']}**, {results['split']} half, {results['n_images']} images"
        + (f", stock top-1 {stock['top1']:.1f} %" if labelled else ", random weights")
        + f", {max(batches)} per batch: images per second from files to vectors as a multiple of stock PyTorch's "
        f"{stock['images_per_second']:.1f} (the model alone); {what}\n\n"
    )
    speeds, dense = list[list[str]](), list[list[str]]()
    for name in dict.fromkeys(row["rung"] for row in rows):
        at = {row["macs"]: row for row in rows if row["rung"] == name and not row["twin"]}
        speeds.append([name, *(_cell(at[share]) if share in at else "–" for share in shares)])
        if 1.0 in at:
            lower = [share for share in shares if share < 1]
            dense.append([name, *(_ratios(at[share], batches) for share in lower)])
    twins = [[f"twin, {row['rung']}", _cell(row), *[""] * (len(shares) - 1)] for row in rows if row["twin"]]
    heads = ["share of the dense MACs", *(f"{share:.0%}" for share in shares)]
    sizes = ", ".join(map(str, sorted(batches)))
    beside = f"The model alone, pruned over dense on the same rung, at batches of {sizes}:\n\n"
    return told + grid(heads, speeds + twins) + "\n\n" + beside + grid([heads[0], *heads[2:]], dense)


def _cell(row: dict[str, Any]) -> str:
    quality = []
    if row["top1_dense"] is not None:
        quality.append(f"{row['top1'] - row['top1_dense']:+.1f}")
    if row["feature_cosine"] is not None:
        quality.append(f"{row['feature_cosine']:.4f}")
    shown = f"**{row['ratio_to_stock']:.2f}x** ({row['model_ratio_to_stock']:.2f}x)"
    return shown + (f"; {' / '.join(quality)}" if quality else "")


def _ratios(row: dict[str, Any], batches: list[int]) -> str:
    return " / ".join(f"{row['ratio_to_dense'][str(size)]:.2f}x" for size in sorted(batches))


def figure(results: dict[str, Any]) -> str:
    """Accuracy against measured time of every rung, one line from dense to the smallest share, as SVG text."""
    rows = [row for row in results["rows"] if not row["twin"]]

    def draw(figure: Any, axes: Any) -> None:
        for number, name in enumerate(dict.fromkeys(row["rung"] for row in rows)):
            own = sorted((row for row in rows if row["rung"] == name), key=lambda row: -row["macs"])
            times, accuracy = ([1000 / row["images_per_second"] for row in own], [row["top1"] for row in own])
            axes.plot(times, accuracy, color=f"C{number}", marker="o", ms=4, lw=1.4, label=name)
            if own[0]["macs"] == 1:
                axes.plot(times[:1], accuracy[:1], color=f"C{number}", marker="o", ms=8, fillstyle="none")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(_TICKS, [f"{milliseconds:g}" for milliseconds in _TICKS])
        every = [1000 / row["images_per_second"] for row in rows]
        axes.set_xlim(min(every) / 1.1, max(every) * 1.1)
        axes.set_xlabel("Milliseconds per image, file to vector (rings: dense)")
        axes.set_ylabel("Zero-shot top-1 (%)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False)

    title = f"Top-1 against time · {results['dataset']}"
    return chart(
        draw, title, "Zero-shot top-1 against milliseconds per image of every rung, dense and pruned", 4.0, 11.5
    )
