"""The static figures of a run folder."""

import sys
from pathlib import Path

from kobai import plots
from kobai.report import exhibits
from kobai.results import (
    History,
    Plane,
    ResultError,
    SpectralDensity,
    Spectrum,
    load,
    result_names,
)


def write_figures(folder: Path) -> list[Path]:
    """Draw every result of a run folder into ``figures/`` as PNG and SVG; the PNG paths.

    Damaged results are named on standard error and on the page, and left out.
    """
    results = {}
    for name in result_names(folder):
        try:
            results[name] = load(folder, name)
        except ResultError as error:
            print(f"kobai: left out: {error}", file=sys.stderr)
    target = folder / "figures"
    histories = [r for r in results.values() if isinstance(r, History)]
    spectra = [r for r in results.values() if isinstance(r, Spectrum) and len(r.eigenvalues)]
    written = []
    if histories:
        written.append(plots.save(plots.curves(histories), target, "curves")[0])
    if spectra:
        written.append(plots.save(plots.eigenvalues(spectra), target, "eigenvalues")[0])
    densities: dict[str, list[SpectralDensity]] = {}
    for result in results.values():
        if isinstance(result, SpectralDensity) and len(result.grid):
            point = "_".join(filter(None, ["density", result.matrix, result.label]))
            densities.setdefault(point, []).append(result)
    for name, group in densities.items():
        # The whole matrix first, then its layers in their order.
        group = sorted(group, key=lambda density: density.block != "")
        written.append(plots.save(plots.spectral_density(group), target, name)[0])
    for name, plane in results.items():
        if isinstance(plane, Plane):
            for kind, draw in (
                ("contour", plots.landscape_contour),
                ("surface", plots.landscape_surface),
            ):
                written.append(plots.save(draw(plane), target, f"{name}_{kind}")[0])
    for exhibit in exhibits(results):
        for (name, _), draw in exhibit.figures.items():
            written.append(plots.save(draw(), target, name)[0])
    return written
