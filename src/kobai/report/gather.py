"""What a run folder holds, sorted for the page; damaged files are named, not fatal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kobai.plots import (
    Style,
    by_optimizer,
    looks_of,
    optimizer_of,
    optimizer_styles,
    optimizers_on,
)
from kobai.results import (
    Check,
    Comparison,
    CriticalRates,
    History,
    Ladder,
    Plane,
    Provenance,
    ResultError,
    SpectralDensity,
    Spectrum,
    load,
    result_names,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """The results of a run folder.

    Attributes:
        name: Name of the folder.
        provenance: Where the numbers come from, or None.
        comparison: The table over seeds, or None.
        histories: Training runs, those of one optimizer together, in the order of the table.
        spectra: Curvature, in the same order.
        densities: Spectral densities; of one point the whole matrix before its layers.
        rates: Critical learning rates, one result a point.
        ladders: Fisher structures against the exact matrix, one result a point.
        planes: Landscape planes; those through several runs first.
        checks: Self-checks, each with the name of what it belongs to.
        damaged: Name of a result that could not be read to the reason.
        config: Text of ``run.toml``; empty without one.
        files: Name of each result to the name of its class.
        results: Name → every result that could be read.
        superseded: Names of the spectra that a later measurement of the same point replaces.
    """

    name: str
    provenance: Provenance | None
    comparison: Comparison | None
    histories: Sequence[History]
    spectra: Sequence[Spectrum]
    densities: Sequence[SpectralDensity] = ()
    rates: Sequence[CriticalRates] = ()
    ladders: Sequence[Ladder] = ()
    planes: Sequence[Plane]
    checks: Sequence[tuple[str, Check]]
    damaged: Mapping[str, str]
    config: str
    files: Mapping[str, str]
    results: Mapping[str, Any] = field(default_factory=dict)
    superseded: Sequence[str] = ()

    @property
    def optimizers(self) -> list[str]:
        """Every optimizer on the page, those of the table first."""
        names = [row.optimizer for row in self.comparison.rows] if self.comparison else []
        names += by_optimizer(self.histories)
        names += [optimizer_of(s.label, s.optimizer) for s in self.spectra]
        names += [optimizer_of(t.label, t.optimizer) for p in self.planes for t in p.trajectories]
        return list(dict.fromkeys(names))

    @property
    def styles(self) -> dict[str, Style]:
        """One style for each optimizer, used by every figure and table of the page."""
        on_planes = [name for plane in self.planes for name in optimizers_on(plane).values()]
        looks = {name: look for plane in self.planes for name, look in plane.looks.items()}
        rows = self.comparison.rows if self.comparison else ()
        looks |= looks_of([*rows, *self.histories, *self.spectra])
        return optimizer_styles([*self.optimizers, *on_planes], looks)


def gather(folder: Path | str) -> Contents:
    """Read everything in a run folder.

    Args:
        folder: The run folder.

    Returns:
        Its contents.

    Raises:
        ResultError: No such folder, or no result in it.
    """
    folder = Path(folder)
    found: dict[str, Any] = {}
    damaged: dict[str, str] = {}
    for name in result_names(folder):
        try:
            found[name] = load(folder, name)
        except ResultError as error:
            # The page is about this folder: its path would only repeat itself.
            damaged[name] = str(error).removeprefix(f"{folder / name}.json: ")
    if not found and not damaged:
        raise ResultError(
            f"{folder}: no results here; a run writes them (kobai compare --out {folder.name})"
        )

    def of(kind: type) -> list[Any]:
        return [result for result in found.values() if isinstance(result, kind)]

    comparison = next(iter(of(Comparison)), None)
    order = {row.optimizer: i for i, row in enumerate(comparison.rows)} if comparison else {}

    def rank(optimizer: str) -> int:
        return order.get(optimizer, len(order))

    histories = sorted(of(History), key=lambda h: (rank(h.optimizer), h.optimizer, h.seed))
    # A comparison's own spectrum_LABEL, where `kobai measure` has left measure_MATRIX_LABEL too.
    again = {
        (s.matrix, s.label)
        for name, s in found.items()
        if isinstance(s, Spectrum) and name.startswith("measure_")
    }
    superseded = [
        name
        for name, s in found.items()
        if isinstance(s, Spectrum) and name.startswith("spectrum_") and (s.matrix, s.label) in again
    ]
    spectra = sorted(
        (s for name, s in found.items() if isinstance(s, Spectrum) and name not in superseded),
        key=lambda s: (s.matrix, rank(optimizer_of(s.label, s.optimizer)), s.label),
    )
    densities = sorted(
        of(SpectralDensity),
        key=lambda d: (
            d.matrix, rank(optimizer_of(d.label, d.optimizer)), d.label, d.block != ""
        ),
    )  # fmt: skip
    planes = sorted(of(Plane), key=lambda p: (len(p.trajectories) == 0, len(p.points) < 2, p.label))
    checks = [(plane.label, check) for plane in planes for check in plane.checks]
    checks += [("run", check) for check in of(Check)]
    config = folder / "run.toml"
    return Contents(
        name=folder.resolve().name,
        provenance=next(iter(of(Provenance)), None),
        comparison=comparison,
        histories=histories,
        spectra=spectra,
        densities=densities,
        rates=of(CriticalRates),
        ladders=of(Ladder),
        planes=planes,
        checks=checks,
        damaged=damaged,
        config=config.read_text(errors="replace") if config.is_file() else "",
        files={name: type(result).__name__ for name, result in found.items()},
        results=found,
        superseded=superseded,
    )
