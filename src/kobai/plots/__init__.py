"""Results as Matplotlib figures, for papers and for pages without scripts.

Every function takes results and returns a ``matplotlib.figure.Figure``; nothing touches pyplot's
global state, so figures can be made on servers, in threads and in notebooks alike.
"""

from kobai.plots.bands import Band, by_optimizer, seed_band
from kobai.plots.contour import landscape_contour, optimizers_on
from kobai.plots.convexity import convexity_map
from kobai.plots.density import spectral_density
from kobai.plots.export import save, to_pdf, to_png, to_svg
from kobai.plots.function_space import function_space, invariance_table
from kobai.plots.input_response import input_response
from kobai.plots.isotropy import isotropy_cost
from kobai.plots.lines import landscape_lines
from kobai.plots.mesh import export_landscape, to_csv, to_stl, to_vtp
from kobai.plots.minima import descents, minimum_panels, proof_panel, solution_epochs
from kobai.plots.panels import panels
from kobai.plots.rate_map import rate_map
from kobai.plots.reproductions import PICTURES, picture
from kobai.plots.sample_sizes import sample_sizes
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
from kobai.plots.shape import (
    connection,
    critical_map,
    ensemble_bands,
    moving_frames,
    shape_table,
)
from kobai.plots.side_by_side import landscape_panels
from kobai.plots.spectrum import eigenvalues
from kobai.plots.spectrum_panels import spectrum_panels
from kobai.plots.style import Style, color_map, optimizer_of, optimizer_styles
from kobai.plots.surface import landscape_surface, viewpoint
from kobai.plots.tangent import tangent_spectrum
from kobai.plots.training_curves import curves
from kobai.plots.trials import (
    parallel_coordinates,
    search_history,
    sensitivity,
    top_distribution,
)
from kobai.plots.volume import landscape_slices
from kobai.plots.width_scan import width_scan

__all__ = [
    "PICTURES",
    "AccuracyAxis",
    "Band",
    "Range",
    "Style",
    "accuracy_axis",
    "by_optimizer",
    "color_map",
    "connection",
    "contour_levels",
    "convexity_map",
    "critical_map",
    "curves",
    "descents",
    "eigenvalues",
    "ensemble_bands",
    "export_landscape",
    "field_range",
    "function_space",
    "input_response",
    "invariance_table",
    "isotropy_cost",
    "landscape_contour",
    "landscape_lines",
    "landscape_panels",
    "landscape_slices",
    "landscape_surface",
    "minimum_panels",
    "moving_frames",
    "optimizer_of",
    "optimizer_styles",
    "optimizers_on",
    "panels",
    "parallel_coordinates",
    "percent",
    "picture",
    "proof_panel",
    "rate_map",
    "sample_sizes",
    "save",
    "search_history",
    "seed_band",
    "sensitivity",
    "shape_table",
    "solution_epochs",
    "spectral_density",
    "spectrum_panels",
    "spell",
    "tangent_spectrum",
    "tick",
    "to_csv",
    "to_pdf",
    "to_png",
    "to_stl",
    "to_svg",
    "to_vtp",
    "top_distribution",
    "viewpoint",
    "width_scan",
]
