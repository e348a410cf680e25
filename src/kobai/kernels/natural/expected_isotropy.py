"""The isotropy that theory expects of a structure, from the sizes of the layers alone.

Without damping every block's kernel is a projector on the range of its rows, so the mean diagonal
of a block-diagonal structure is the sum of the blocks' ranks over the number of directions; for
K-FAC the mean of a product of two projectors' diagonals, N times. Generic ranks follow from sizes.
For a perceptron these are the numbers of Karakida and Osawa 2020 (2010.00879): 1 exact, L by
layers, ⌈L/3⌉ tridiagonal, N(L − 1) + 1 for K-FAC, Σ M_l/C + 1 by units.
"""

import dataclasses
import math

from kobai.curvature.rows import Stacked
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.outer_products import OuterRows
from kobai.curvature.rows.parts import Part
from kobai.curvature.structures import (
    ChainStructure,
    DiagonalStructure,
    FullStructure,
    KroneckerStructure,
    LayerStructure,
    Structure,
    TridiagonalStructure,
    UnitStructure,
    layers_of,
)
from kobai.kernels.natural.output_factors import OutputFactors

_RECTIFIED = (0.3, 0.7)
"""Shares of (example, unit) pairs without a gradient that count as a rectifier's half."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a wide network would show.

    Attributes:
        alpha: Mean diagonal of the kernel as damping goes to 0; NaN without theory.
        isotropic: Whether the kernel is α times the identity, at least as the width grows.
        reasons: Which assumptions fail, and limits of the statement.
    """

    alpha: float
    isotropic: bool
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartFacts:
    """What a prediction needs to know of one part.

    Attributes:
        part: The part.
        name: Of its layer.
        places: How often an example uses it.
        final: Whether it gives the network's outputs, so that its gradients do not depend on θ.
        varying: Whether an output layer's gradients differ between examples all the same, as those
            of softmax do.
        inactive: Share of (example, unit) pairs without any gradient.
    """

    part: Part
    name: str
    places: int
    final: bool
    varying: bool
    inactive: float


def part_facts(
    source: ScoreRows, rows: list[Stacked], factors: OutputFactors
) -> tuple[PartFacts, ...]:
    """Facts of every part, from the rows along the factor's columns."""
    names = {i: layer.name for layer in layers_of(source) for i in layer.positions}
    spread = (factors.matrices - factors.matrices[:1]).abs().max()
    varying = bool(spread > 1e-6 * factors.matrices.abs().max())
    found = []
    for i, (part, places, own) in enumerate(zip(source.parts, source.places, rows, strict=True)):
        final, inactive = False, 0.0
        pieces = [piece for piece in own.pieces if isinstance(piece, OuterRows)]
        if len(pieces) == len(own.pieces) and places == 1:
            silent, count, start, final = 0, 0, 0, True
            for piece in pieces:
                gradients = piece.gradients[:, :, :, 0]
                silent += int((gradients == 0).all(2).sum())
                count += gradients[:, :, 0].numel()
                stop = start + piece.examples
                expected = factors.matrices[start:stop].mT.to(gradients)
                start = stop
                final = final and (
                    gradients.shape[0] == 1
                    and gradients[0].shape == expected.shape
                    and bool((gradients[0] - expected).abs().max() <= 1e-6)
                )
            inactive = 0.0 if final else silent / max(count, 1)
        found.append(
            PartFacts(
                part=part,
                name=names[i],
                places=places,
                final=final,
                varying=final and varying,
                inactive=inactive,
            )
        )
    return tuple(found)


def expectation(
    structure: Structure, source: ScoreRows, facts: tuple[PartFacts, ...], directions: int
) -> Expectation:
    """The prediction for one structure.

    Args:
        structure: Which.
        source: Rows along the columns of the output Hessian's factor.
        facts: Of all parts.
        directions: In which residuals can point.
    """
    if isinstance(structure, FullStructure):
        return _full(source.theta.numel(), directions)
    if isinstance(structure, LayerStructure):
        return _layers(facts, source.objective.size, directions)
    if isinstance(structure, TridiagonalStructure | ChainStructure):
        layers = _layers(facts, source.objective.size, directions)
        if not layers.isotropic:
            return Expectation(alpha=math.nan, isotropic=False, reasons=layers.reasons)
        depth = len({fact.name for fact in facts})
        if isinstance(structure, ChainStructure):
            return Expectation(
                alpha=1.0, isotropic=True, reasons=("every layer fits all outputs: chain = exact",)
            )
        notes = ("indefinite from three layers on: damping must be tiny",) if depth > 2 else ()
        return Expectation(alpha=float(-(-depth // 3)), isotropic=True, reasons=notes)
    if isinstance(structure, KroneckerStructure):
        return _kronecker(facts, source.objective.size, directions)
    if isinstance(structure, UnitStructure):
        return _unit(facts, source.objective.size, directions)
    if isinstance(structure, DiagonalStructure):
        note = "the entry-wise diagonal is isotropic at no width"
        return Expectation(alpha=math.nan, isotropic=False, reasons=(note,))
    return Expectation(
        alpha=math.nan, isotropic=False, reasons=("there is no theory for this structure",)
    )


def _full(parameters: int, directions: int) -> Expectation:
    if directions <= parameters:
        return Expectation(alpha=1.0, isotropic=True)
    note = f"{directions} directions exceed the {parameters} parameters: a projection"
    return Expectation(alpha=parameters / directions, isotropic=False, reasons=(note,))


def _back_rank(fact: PartFacts, examples: int, directions: int) -> int:
    """Generic rank of the gradients in a layer's output; an output layer's do not vary."""
    outer = fact.part.shape[1]
    if fact.final:
        return min(outer, directions // max(examples, 1))
    return min(directions, outer)


def _generic_rank(fact: PartFacts, examples: int, directions: int) -> int:
    """Generic rank of a part's rows."""
    groups, _, inner = fact.part.shape
    if fact.part.kind in ("matrix", "bias") and fact.places == 1:
        product = _back_rank(fact, examples, directions) * min(examples, inner)
        return min(directions, groups * product)
    return min(directions, fact.part.size)


def _layers(facts: tuple[PartFacts, ...], examples: int, directions: int) -> Expectation:
    ranks: dict[str, int] = {}
    for fact in facts:
        rank = ranks.get(fact.name, 0) + _generic_rank(fact, examples, directions)
        ranks[fact.name] = min(directions, rank)
    low = [name for name, rank in ranks.items() if rank < directions]
    alpha = sum(ranks.values()) / directions
    reasons = (f"layers {', '.join(low)} have kernels of rank below {directions}",) if low else ()
    return Expectation(alpha=alpha, isotropic=not low, reasons=reasons)


def _kronecker(facts: tuple[PartFacts, ...], examples: int, directions: int) -> Expectation:
    alpha, reasons, isotropic = 0.0, [], True
    for fact in facts:
        groups, outer, inner = fact.part.shape
        if fact.part.kind not in ("matrix", "bias") or fact.places > 1 or groups > 1:
            return Expectation(
                alpha=math.nan, isotropic=False,
                reasons=(f"{fact.name}: no theory for {_why(fact)}",),
            )  # fmt: skip
        inputs = min(examples, inner) / examples
        back = _back_rank(fact, examples, directions) / directions
        alpha += examples * inputs * back
        if inputs < 1:
            isotropic = False
            reasons.append(f"{fact.name}: N = {examples} exceeds fan-in + bias = {inner}")
        if fact.varying:
            reasons.append(
                f"{fact.name}: gradients of the output layer vary with the predictions, so its "
                "share of α is not isotropic"
            )
        if not fact.final and back < 1:
            isotropic = False
            reasons.append(
                f"{fact.name}: {directions} directions exceed the width {outer} of its output"
            )
    if not isotropic:
        reasons.append(
            "α holds in the mean only; in the first layer isotropy returns with inputs in "
            "radial-isotropic position (kobai.kernels.radial_isotropic)"
        )
    return Expectation(alpha=alpha, isotropic=isotropic, reasons=tuple(reasons))


def _unit(facts: tuple[PartFacts, ...], examples: int, directions: int) -> Expectation:
    each = directions / examples
    alpha, reasons, isotropic = 0.0, [], True
    for fact in facts:
        groups, outer, inner = fact.part.shape
        units = groups * outer
        if fact.part.kind not in ("matrix", "bias"):
            units, own = fact.part.shape[1], fact.part.shape[2]
            alpha += units * min(directions, own) / directions
            isotropic = False
            reasons.append(f"{fact.name}: {_why(fact)} has few parameters a unit")
            continue
        if fact.places > 1:
            isotropic = False
            reasons.append(f"{fact.name}: no theory for {_why(fact)}")
            alpha += units * min(directions, inner) / directions
            continue
        active = 1.0
        if fact.inactive > 0:
            half = _RECTIFIED[0] <= fact.inactive <= _RECTIFIED[1]
            active = 0.5 if half else 1 - fact.inactive
            reasons.append(
                f"{fact.name}: {fact.inactive:.0%} of the units are inactive at an example, "
                f"counted as {1 - active:.0%}"
            )
        alpha += active * units * min(examples, inner) / (examples * each)
        if inner < examples:
            isotropic = False
            reasons.append(f"{fact.name}: N = {examples} exceeds fan-in + bias = {inner}")
    hidden = any(not fact.final for fact in facts)
    if isotropic and hidden and (each > 1 or any(fact.inactive > 0 for fact in facts)):
        reasons.append("isotropic as the width grows, with an error of O(1/√M)")
    return Expectation(alpha=alpha, isotropic=isotropic, reasons=tuple(reasons))


def _why(fact: PartFacts) -> str:
    if fact.part.kind == "scale":
        return "scale and shift of a normalisation"
    if fact.part.kind in ("embedding", "jacobian"):
        return f"a {fact.part.kind} part"
    if fact.places > 1:
        return f"a matrix used at {fact.places} places"
    return "a grouped layer"
