"""What comes out: frozen dataclasses of NumPy arrays that save, load and explain themselves.

Every computation of kobai ends in one of these; pictures and the report read them and nothing
else. A run folder holds one ``NAME.json`` (and ``NAME.npz``) a result.
"""

from kobai.results.budget_runs import UNITS, BudgetRun, BudgetRuns, BudgetTable
from kobai.results.codec import ResultError, identical
from kobai.results.comparison import Aggregate, Comparison, ComparisonRow, aggregate
from kobai.results.curvature.critical_rates import CriticalRate, CriticalRates
from kobai.results.curvature.density import SpectralDensity
from kobai.results.curvature.exactness import Ladder, LadderRung
from kobai.results.curvature.isotropy import Isotropy, IsotropyTable
from kobai.results.curvature.spectrum import Spectrum
from kobai.results.curvature.tangent_kernel import TangentSummary
from kobai.results.files import atomic_write
from kobai.results.history import History, history_to_csv
from kobai.results.landscape.line import Line
from kobai.results.landscape.minimum import CriticalPoint, CriticalPoints, MinimumProof, Solution
from kobai.results.landscape.plane import Check, Plane, Trajectory
from kobai.results.landscape.shape import Connection, Ensemble, MovingFrame, Smoothness
from kobai.results.landscape.volume import Volume
from kobai.results.look import DASHES, Look
from kobai.results.origin import Provenance, provenance
from kobai.results.panels import Panel, Panels, Series
from kobai.results.registry import register
from kobai.results.reproduction import Claim, Finding, Reproduction, Verdict, summarize
from kobai.results.store import load, load_all, result_names, save
from kobai.results.trials import Scores, Trials
from kobai.results.true_minimum.descent import (
    Descent,
    Descents,
    PlanePanels,
    ShapeTable,
    SolutionTable,
)
from kobai.results.wide_networks.function_space_runs import FunctionSpaceRuns, Invariance
from kobai.results.wide_networks.input_response import InputResponse
from kobai.results.wide_networks.rate_map import RateMap
from kobai.results.wide_networks.sample_sizes import SampleSizes
from kobai.results.wide_networks.spectrum_panels import SpectrumPanels
from kobai.results.wide_networks.width_scan import WidthScan

__all__ = [
    "DASHES",
    "UNITS",
    "Aggregate",
    "BudgetRun",
    "BudgetRuns",
    "BudgetTable",
    "Check",
    "Claim",
    "Comparison",
    "ComparisonRow",
    "Connection",
    "CriticalPoint",
    "CriticalPoints",
    "CriticalRate",
    "CriticalRates",
    "Descent",
    "Descents",
    "Ensemble",
    "Finding",
    "FunctionSpaceRuns",
    "History",
    "InputResponse",
    "Invariance",
    "Isotropy",
    "IsotropyTable",
    "Ladder",
    "LadderRung",
    "Line",
    "Look",
    "MinimumProof",
    "MovingFrame",
    "Panel",
    "Panels",
    "Plane",
    "PlanePanels",
    "Provenance",
    "RateMap",
    "Reproduction",
    "ResultError",
    "SampleSizes",
    "Scores",
    "Series",
    "ShapeTable",
    "Smoothness",
    "Solution",
    "SolutionTable",
    "SpectralDensity",
    "Spectrum",
    "SpectrumPanels",
    "TangentSummary",
    "Trajectory",
    "Trials",
    "Verdict",
    "Volume",
    "WidthScan",
    "aggregate",
    "atomic_write",
    "history_to_csv",
    "identical",
    "load",
    "load_all",
    "provenance",
    "register",
    "result_names",
    "save",
    "summarize",
]
