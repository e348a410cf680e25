"""Results as Matplotlib figures, for papers and for pages without scripts.

Every function takes results and returns a ``matplotlib.figure.Figure``; nothing touches pyplot's
global state, so figures can be made on servers, in threads and in notebooks alike.
"""

from kobai.plots.bands import Band, by_optimizer, seed_band
from kobai.plots.curvature.density import spectral_density
from kobai.plots.curvature.isotropy import isotropy_cost
from kobai.plots.curvature.spectrum import eigenvalues
from kobai.plots.curvature.tangent_kernel import tangent_spectrum
from kobai.plots.export import save, to_pdf, to_png, to_svg
from kobai.plots.landscape.contour import landscape_contour, optimizers_on
from kobai.plots.landscape.convexity import convexity_map
from kobai.plots.landscape.lines import landscape_lines
from kobai.plots.landscape.mesh import export_landscape, to_csv, to_stl, to_vtp
from kobai.plots.landscape.minimum_proof import proof_panel
from kobai.plots.landscape.shape import (
    connection,
    critical_map,
    ensemble_bands,
    moving_frames,
)
from kobai.plots.landscape.side_by_side import landscape_panels
from kobai.plots.landscape.surface import landscape_surface, viewpoint
from kobai.plots.landscape.volume import landscape_slices
from kobai.plots.panels import panels
from kobai.plots.pictures import PICTURES, picture
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
from kobai.plots.style import Style, color_map, label_of, looks_of, optimizer_of, optimizer_styles
from kobai.plots.training_curves import curves
from kobai.plots.trials import (
    parallel_coordinates,
    search_history,
    sensitivity,
    top_distribution,
)
from kobai.plots.true_minimum.solutions import (
    descents,
    minimum_panels,
    shape_table,
    solution_epochs,
)
from kobai.plots.wide_networks.function_space import function_space, invariance_table
from kobai.plots.wide_networks.input_response import input_response
from kobai.plots.wide_networks.rate_map import rate_map
from kobai.plots.wide_networks.sample_sizes import sample_sizes
from kobai.plots.wide_networks.spectrum_panels import spectrum_panels
from kobai.plots.wide_networks.width_scan import width_scan

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
    "label_of",
    "landscape_contour",
    "landscape_lines",
    "landscape_panels",
    "landscape_slices",
    "landscape_surface",
    "looks_of",
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
