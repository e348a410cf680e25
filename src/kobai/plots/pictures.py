"""Find the picture that belongs to a result of a reproduction."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from kobai.plots.landscape.minimum_proof import proof_panel
from kobai.plots.landscape.shape import (
    connection,
    critical_map,
    ensemble_bands,
    moving_frames,
)
from kobai.plots.panels import panels
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
from kobai.results import (
    Connection,
    CriticalPoints,
    Descents,
    Ensemble,
    FunctionSpaceRuns,
    InputResponse,
    Invariance,
    MinimumProof,
    MovingFrame,
    Panels,
    PlanePanels,
    RateMap,
    SampleSizes,
    ShapeTable,
    SolutionTable,
    SpectrumPanels,
    WidthScan,
)

PICTURES: dict[type, Callable[[Any], Figure]] = {
    Connection: connection,
    CriticalPoints: critical_map,
    Descents: descents,
    Ensemble: ensemble_bands,
    FunctionSpaceRuns: function_space,
    InputResponse: input_response,
    Invariance: invariance_table,
    MinimumProof: proof_panel,
    MovingFrame: moving_frames,
    Panels: panels,
    PlanePanels: minimum_panels,
    RateMap: rate_map,
    ShapeTable: shape_table,
    SolutionTable: solution_epochs,
    SampleSizes: sample_sizes,
    SpectrumPanels: spectrum_panels,
    WidthScan: width_scan,
}
"""Class of a result → the function that draws it."""


def picture(result: Any) -> Figure | None:
    """The figure of a result that has one.

    Args:
        result: Any result.

    Returns:
        The figure; None where the class has none in `PICTURES`, or nothing can be drawn.
    """
    draw = PICTURES.get(type(result))
    if draw is None:
        return None
    try:
        return draw(result)
    except ValueError:  # nothing finite to draw; the tables say so
        return None
