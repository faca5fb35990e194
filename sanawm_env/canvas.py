"""An empty figure of matplotlib that needs no display."""

from __future__ import annotations

from typing import Any

from sanawm_env.errors import MissingExtraError


def canvas(width: float, height: float) -> Any:
    """A `matplotlib.figure.Figure` of so many inches, laid out by itself. MissingExtraError without the extra."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed; pip install 'sanawm-env[metrics]'."
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
