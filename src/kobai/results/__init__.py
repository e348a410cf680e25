"""What comes out: frozen dataclasses of NumPy arrays that save, load and explain themselves.

Every computation of kobai ends in one of these; pictures and the report read them and nothing
else. A run folder holds one ``NAME.json`` (and ``NAME.npz``) a result.
"""

from kobai.results.codec import ResultError, identical
from kobai.results.comparison import Aggregate, Comparison, ComparisonRow, aggregate
from kobai.results.density import SpectralDensity
from kobai.results.descent import Descent, Descents, PlanePanels, ShapeTable, SolutionTable
from kobai.results.files import atomic_write
from kobai.results.function_space_runs import FunctionSpaceRuns, Invariance
from kobai.results.history import History, history_to_csv
from kobai.results.input_response import InputResponse
from kobai.results.isotropy import Isotropy, IsotropyTable
from kobai.results.ladder import Ladder, LadderRung
from kobai.results.line import Line
from kobai.results.minimum import CriticalPoint, CriticalPoints, MinimumProof, Solution
from kobai.results.origin import Provenance, provenance
from kobai.results.panels import Panel, Panels, Series
from kobai.results.plane import Check, Plane, Trajectory
from kobai.results.rate_map import RateMap
from kobai.results.registry import register
from kobai.results.reproduction import Claim, Finding, Reproduction, Verdict, summarize
from kobai.results.sample_sizes import SampleSizes
from kobai.results.shape import Connection, Ensemble, MovingFrame, Smoothness
from kobai.results.spectrum import Spectrum
from kobai.results.spectrum_panels import SpectrumPanels
from kobai.results.stability import CriticalRate, CriticalRates
from kobai.results.store import load, load_all, result_names, save
from kobai.results.suite import UNITS, BudgetRun, BudgetRuns, BudgetTable
from kobai.results.tangent import TangentSummary
from kobai.results.trials import Scores, Trials
from kobai.results.volume import Volume
from kobai.results.width_scan import WidthScan

__all__ = [
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
