"""patchranking export."""

from __future__ import annotations

from pathlib import Path

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.exporting.export import export as run_export
from patchranking.exporting.settings import ExportSettings
from patchranking.methods.attach import fitted_pruner
from patchranking.pruning.select import check_keep_rate
from patchranking.towers.load import load_model

__all__ = ["export"]


def export(
    model: str,
    settings: ExportSettings,
    out: Path = Path("runs/export"),
    pruner: Path | None = None,
    keep: float | None = None,
    macs: float | None = None,
    images: str | None = None,
) -> None:
    """Writes a model, pruned or dense, as files that run without this package, and checks them.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        settings: What to write.
        out: Folder for the files; an export that is there gives way.
        pruner: A folder written by fit or tune, or a repository on the Hub; the dense model is written without one.
        keep: Share of the patches that reaches the end; that of the pruner when omitted.
        macs: Share of the dense multiply-accumulates, in place of a keep rate.
        images: DATA of the kind that will be encoded, on which bf16 and int8 are measured.
    """
    if keep is not None:
        check_keep_rate(keep)
    if pruner is None and (keep, macs) != (None, None):
        raise UserError("Without a pruner every patch is kept: give --pruner, or leave --keep and --macs out.")
    if None not in (keep, macs):
        raise UserError("A keep rate and a share of the multiply-accumulates exclude each other: give one.")
    given = None if pruner is None else fitted_pruner(pruner)
    data = None if images is None else load_data(images)
    loaded = load_model(model)
    if given is not None:
        given.base.check(loaded.tower)
        given = given.at(keep or given.keep) if macs is None else given.at_macs(loaded.tower, macs)
    about = run_export(loaded, out, given, settings, data)
    print(f"checked at batches of 1, 3 and 8: cosine {about.check['image_cosine']:.6f} to PyTorch, same patches")
    if settings.precision != "fp32":
        cosine, overlap, number = (about.check[name] for name in ("feature_cosine", "index_overlap_at_10", "images"))
        print(
            f"{settings.precision} on {number:.0f} images: cosine {cosine:.4f} to fp32, {overlap:.1%} of the nearest "
            "neighbours stay"
        )
    print(f"multiply-accumulates: {about.macs_share:.0%} of the dense model's, at keep rate {about.keep:.2f}")
    print(f"wrote {out / about.image}, and how to run it to {out / 'README.md'}")
