"""Results as Matplotlib figures, for papers and for pages without scripts.

Every function takes results and returns a ``matplotlib.figure.Figure``; nothing touches pyplot's
global state, so figures can be made on servers, in threads and in notebooks alike.
"""

from kobai.plots.bands import Band, by_optimizer, seed_band
from kobai.plots.contour import landscape_contour, optimizers_on
from kobai.plots.density import spectral_density
from kobai.plots.export import save, to_png, to_svg
from kobai.plots.rate_map import rate_map
from kobai.plots.scales import (
    AccuracyAxis,
    Range,
    accuracy_axis,
    contour_levels,
    field_range,
    percent,
    spell,
    tick,
)
from kobai.plots.spectrum import eigenvalues
from kobai.plots.style import Style, color_map, optimizer_of, optimizer_styles
from kobai.plots.surface import landscape_surface, viewpoint
from kobai.plots.training_curves import curves
from kobai.plots.trials import (
    parallel_coordinates,
    search_history,
    sensitivity,
    top_distribution,
)

__all__ = [
    "AccuracyAxis",
    "Band",
    "Range",
    "Style",
    "accuracy_axis",
    "by_optimizer",
    "color_map",
    "contour_levels",
    "curves",
    "eigenvalues",
    "field_range",
    "landscape_contour",
    "landscape_surface",
    "optimizer_of",
    "optimizer_styles",
    "optimizers_on",
    "parallel_coordinates",
    "percent",
    "rate_map",
    "save",
    "search_history",
    "seed_band",
    "sensitivity",
    "spectral_density",
    "spell",
    "tick",
    "to_png",
    "to_svg",
    "top_distribution",
    "viewpoint",
]
