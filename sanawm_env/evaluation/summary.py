"""The evaluation's report as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROWS = (
    ("psnr_visible", "PSNR, visible pixels (dB)", 1),
    ("autoencoder", "  ceiling: autoencoder alone", 1),
    ("copy_first", "  copy of the first frame", 1),
    ("wrong_camera", "  another scene's path", 1),
    ("psnr_all", "PSNR, all pixels (dB)", 1),
    ("ssim_all", "SSIM, all pixels", 3),
    ("visible_share", "visible share", 2),
    ("pose_error_degrees", "pose error (degrees)", 2),
    ("pose_error_metres", "pose error (metres)", 3),
    ("pose_error_frames", "  frames that tell it", 0),
)
WIDTH = 30


def summary(report: Mapping[str, Any]) -> str:
    """Several lines of text: one row a measure, one column a horizon, then the single numbers."""
    horizons = list(report["psnr_visible"])
    lines = [
        f"{report['bundle']} {report['resolution'][0]}x{report['resolution'][1]}, {report['scenes']} held-out scenes, "
        f"{report['device']} ({report['machine']}), {report['precision']}",
        "frames ahead".ljust(WIDTH) + "".join(k.rjust(8) for k in horizons),
    ]
    for key, label, digits in ROWS:
        if key in report:
            cells = (_cell(report[key].get(k), digits) for k in horizons)
            lines.append(label.ljust(WIDTH) + "".join(cells))
    for k, value in report.get("there_and_back_db", {}).items():
        lines.append(f"back at the first pose after {k} frames: {value:.1f} dB (all pixels)")
    lines.append(f"streamed = one pass within {report['streaming_error']:.1e} (relative)")
    lines.append(
        f"{report['fps']:.1f} frames/s streamed and decoded, bundle {report['bundle_sha256'][:12] or 'in memory'}"
    )
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return ("-" if value is None else f"{value:.{digits}f}").rjust(8)


def parity_summary(report: Mapping[str, Any]) -> str:
    """Several lines of text: one row a chunk, high and low precision side by side, then the verdict."""
    columns = ("psnr_db", "pose_error_degrees", "pose_error_metres")
    labels = ("PSNR, visible (dB)", "pose error (degrees)", "pose error (metres)")
    lines = [
        f"{report['bundle']}, {report['scenes']} held-out scenes, {report['device']}: {report['high']} against "
        f"{report['low']}, layers {report['layers']}, weights {report['share_of_bf16']:.3f} of bf16's",
        "chunk  latent error" + "".join(label.rjust(24) for label in labels),
    ]
    for number, row in enumerate(report["chunks"], start=1):
        pairs = (" -> ".join(_cell(row[key][side], 3).strip() for side in ("high", "low")) for key in columns)
        lines.append(f"{number:5d}{row['latent_error']:14.4f}" + "".join(pair.rjust(24) for pair in pairs))
    gaps = ", ".join(f"{name} {gap:+.2f} dB" for name, gap in report["gap_db"].items())
    verdict = "passed" if report["passed"] else "not passed"
    lines.append(f"worse by: {gaps}; allowed {report['limit_db']} dB: {verdict}")
    return "\n".join(lines)
