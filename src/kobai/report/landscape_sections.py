"""Sections of the page about landscapes other than planes, and about true minima."""

from collections.abc import Mapping
from typing import Any

from kobai import plots
from kobai.plots import spell
from kobai.results import Line, MinimumProof, Plane, Volume

TRUE = "_true-minimum"
"""What the name of a landscape over a relabelled problem ends in."""


def landscape_sections(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What lines, volumes, convexity maps and true minima show.

    Args:
        results: Name → result.

    Returns:
        Sections as keyword arguments of `kobai.report.exhibits.Exhibit`.
    """
    return [*_lines(results), *_volumes(results), *_convexity(results), *_minima(results)]


def _lines(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = []
    for name, line in results.items():
        if isinstance(line, Line):
            splits = [f.removesuffix("_loss") for f in line.fields if f.endswith("_loss")]
            made.append(
                {
                    "title": f"Line · {line.label}",
                    "lead": f"{line.axis_name}, {len(line.a)} nodes. {line.note}",
                    "figures": {
                        (f"{name}_line", f"Loss along {line.axis_name}"): (
                            lambda line=line, splits=splits: plots.landscape_lines(
                                line, splits=splits
                            )
                        )
                    },
                }
            )
    return made


def _volumes(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": f"Volume · {volume.label}",
            "lead": f"Slices across {volume.axis_names[2]} at one scale. {volume.note}",
            "figures": {
                (f"{name}_slices", "Slices of the loss in three directions"): (
                    lambda volume=volume: plots.landscape_slices(volume)
                )
            },
        }
        for name, volume in results.items()
        if isinstance(volume, Volume)
    ]


def _convexity(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": f"Convexity · {plane.label}",
            "lead": "The least eigenvalue of the Hessian over the largest in absolute value: "
            "blue is a bowl, red a saddle or a cap, the line bounds what is not convex.",
            "figures": {
                (f"{name}_convexity", "Convexity of the plane"): (
                    lambda plane=plane: plots.convexity_map(plane)
                )
            },
        }
        for name, plane in results.items()
        if isinstance(plane, Plane)
        and any({f"{kind}_min", f"{kind}_max"} <= set(plane.fields) for kind in _CURVATURES)
    ]


_CURVATURES = ("hessian", "curvature")


def _minima(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = []
    for proof in results.values():
        if not isinstance(proof, MinimumProof):
            continue
        pairs = [
            (name, results[name], results[f"{name}{TRUE}"])
            for name in results
            if f"{name}{TRUE}" in results and isinstance(results[name], Plane)
        ]
        made.append(
            {
                "title": f"True minimum · {proof.label}",
                "lead": f"The training data relabelled with the model's own outputs "
                f"({proof.targets} targets): the gradient's norm is {spell(proof.gradient_norm)} "
                f"against {spell(proof.original_gradient_norm)} on the labels, the smallest "
                f"eigenvalue of the Hessian {spell(proof.eigenvalue_min)}. "
                + (
                    "Every condition of a minimum holds."
                    if proof.holds
                    else "Not every condition of a minimum holds."
                ),
                "figures": {
                    (f"{name}_panels", "Both landscapes at one scale"): (
                        lambda first=first, second=second: plots.landscape_panels(
                            (first, second), titles=("labels", "own outputs as targets")
                        )
                    )
                    for name, first, second in pairs
                },
                "heads": ("condition", "found", "tolerance", "holds"),
                "words": ("holds",),
                "rows": [
                    [
                        check.name,
                        spell(check.value),
                        spell(check.tolerance),
                        "yes" if check.passed else "no",
                    ]
                    for check in proof.checks
                ],
            }
        )
    return made
