"""True minimum: a network made exactly optimal by giving it its own outputs for targets.

Source: Wang & Thawonmas, visualisation of loss landscapes from a true minimum, Algorithm 1. Its
relabelled training set, which it calls its validation set, is the training split here.
"""

import copy
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature import GGN, Hessian, eigenvalues
from kobai.landscape.relabel import Targets, relabelled
from kobai.linalg import rademacher
from kobai.problem import EmpiricalRisk, Problem, pure
from kobai.results import Check, MinimumProof

ROUNDINGS = 2
"""Roundings of an output (relative to the largest) that the gradient's tolerance allows for."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrueMinimum:
    """A problem whose minimum is known.

    Attributes:
        problem: The relabelled problem, over the original model.
        theta: θ*, where it has its minimum (P,).
        proof: The conditions of a minimum, measured.
    """

    problem: Problem
    theta: Float[Tensor, " P"]
    proof: MinimumProof


def true_minimum(
    problem: Problem,
    targets: Targets = "soft",
    *,
    theta: Float[Tensor, " P"] | None = None,
    curvature: bool = True,
    tol: float = 1e-3,
    max_products: int | None = None,
    label: str = "",
    generator: torch.Generator | None = None,
) -> TrueMinimum:
    """Relabel a problem with the outputs at θ*, and prove that θ* is its minimum (or is not).

    With soft targets the residual is zero at θ*: the gradient vanishes, the Hessian is the
    Gauss-Newton matrix and has no negative eigenvalue, and no parameters have a smaller loss, so
    the minimum is global. Cross-entropy is then the excess over the targets' entropy. With hard
    targets (the decisions, as labels in a sparse cross-entropy would be) none of this holds; the
    proof says by how much.

    Args:
        problem: Model, likelihood and data. The model must be a function of θ (evaluation mode):
            with running statistics frozen, if it has batch normalisation.
        targets: "soft" or "hard".
        theta: θ*; default: the module's parameters now.
        curvature: Prove the second-order conditions as well.
        tol: Relative accuracy of the eigenvalues.
        max_products: Budget of Hessian products; default as in `eigenvalues`.
        label: Name of the point.
        generator: Draws random vectors; default: one of seed 0.

    Returns:
        The new problem with all splits relabelled, θ* and the proof. Cost: a forward pass over
        every split, five gradients, and with `curvature` about a hundred Hessian products.

    Raises:
        ValueError: If targets are unknown or have no meaning, or the module is not a function of θ.
    """
    draw = torch.Generator().manual_seed(0) if generator is None else generator
    original = problem.objective()
    theta = (original.theta() if theta is None else theta).detach().clone()
    made = relabelled(problem, theta, targets)
    proof = prove_minimum(
        made.objective(),
        theta,
        targets=targets,
        original=original,
        curvature=curvature,
        tol=tol,
        max_products=max_products,
        label=label,
        generator=draw,
    )
    return TrueMinimum(problem=made, theta=theta, proof=proof)


def prove_minimum(
    objective: EmpiricalRisk,
    theta: Float[Tensor, " P"],
    *,
    targets: Targets,
    original: EmpiricalRisk,
    curvature: bool = True,
    tol: float = 1e-3,
    max_products: int | None = None,
    label: str = "",
    generator: torch.Generator,
) -> MinimumProof:
    """Measure the conditions of a minimum at a point of a relabelled problem.

    Args:
        objective: The risk over the relabelled data.
        theta: The point.
        targets: How the data were relabelled.
        original: The risk over the original data.
        curvature: Prove the second-order conditions as well.
        tol: Relative accuracy of the eigenvalues.
        max_products: Budget of Hessian products.
        label: Name of the point.
        generator: Draws random vectors.

    Returns:
        The proof; a condition that fails is a failed check, not an error.
    """
    loss, gradient = objective.value_and_grad(theta)
    norm, epsilon = float(gradient.double().norm()), torch.finfo(theta.dtype).eps
    unit, largest = _gradient_of_rounding(objective, theta, generator)
    tolerance = ROUNDINGS * epsilon * (1 + largest) * unit
    original_loss, original_gradient = original.value_and_grad(theta)
    checks = [
        Check(
            name="gradient",
            passed=norm <= tolerance,
            value=norm,
            tolerance=tolerance,
            detail="‖∇L‖ at θ* against what rounding of the outputs alone can cause",
        ),
    ]
    # Where the residual vanishes, a loss that is convex in the outputs is least; a family that does
    # not leave its floor out has the loss at θ* for its floor, and nothing to compare it with.
    loss, floor = float(loss), _floor(objective, theta)
    if objective.likelihood.floor_is_zero:
        checks.append(_floor_check(loss, float(original_loss), epsilon, targets))
    else:
        loss, floor = 0.0, loss
    found = None
    gap = low = low_error = high = high_error = float("nan")
    if curvature:
        hessian = Hessian(objective, theta)
        gap = _gap(hessian, GGN(objective, theta), generator)
        found = eigenvalues(
            hessian, min(2, len(theta)), which="both", tol=tol, max_products=max_products,
            generator=generator,
        )  # fmt: skip
        if found.values.numel():
            low, high = float(found.values[0]), float(found.values[-1])
            low_error, high_error = float(found.errors[0]), float(found.errors[-1])
        checks += [
            Check(
                name="Hessian = Gauss-Newton",
                passed=gap <= 1e4 * epsilon,
                value=gap,
                tolerance=1e4 * epsilon,
                detail="largest ‖(H − G) v‖ / ‖G v‖ over 3 random v",
            ),
            Check(
                name="no negative eigenvalue",
                passed=-low <= max(1e3 * epsilon, tol**2) * abs(high) + low_error,
                value=max(0.0, -low),
                tolerance=max(1e3 * epsilon, tol**2) * abs(high) + low_error,
                detail=f"−λ_min where it is negative; λ_max {high:.4g}",
            ),
        ]
    likelihood = original.likelihood
    smoothing = getattr(likelihood, "label_smoothing", 0.0)
    return MinimumProof(
        label=label,
        targets=targets,
        likelihood=likelihood.name,
        examples=objective.size,
        dimension=len(theta),
        loss=loss,
        floor=floor,
        original_loss=float(original_loss),
        gradient_norm=norm,
        gradient_tolerance=tolerance,
        original_gradient_norm=float(original_gradient.double().norm()),
        eigenvalue_min=low,
        eigenvalue_min_error=low_error,
        eigenvalue_max=high,
        eigenvalue_max_error=high_error,
        curvature_gap=gap,
        checks=tuple(checks),
        num_products=found.num_products if found else 0,
        status=found.status if found else "",
        note=f"label smoothing {smoothing:g} of the original loss left out" if smoothing else "",
    )


def _floor_check(loss: float, original: float, epsilon: float, targets: Targets) -> Check:
    tolerance = 1e4 * epsilon * (1 + abs(original)) if targets == "hard" else 1e4 * epsilon**1.5
    return Check(
        name="loss at its floor",
        passed=abs(loss) <= tolerance,
        value=abs(loss),
        tolerance=tolerance,
        detail="loss at θ* above the least that any model can have on these targets",
    )


def _floor(objective: EmpiricalRisk, theta: Tensor) -> float:
    """Compute the entropy of the targets, which `excess` leaves out, in the objective's units."""
    if not objective.likelihood.excess:
        return 0.0
    whole = copy.copy(objective.likelihood)
    whole.excess = False
    entire = EmpiricalRisk(
        objective.model, whole, objective.batches, coupled=objective.coupled, space=objective.space
    )
    return float(entire.value(theta)) - float(objective.value(theta))


def _gradient_of_rounding(
    objective: EmpiricalRisk, theta: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Bound ‖∇L‖ per unit of residual in every output, and find the largest |output|.

    ‖Jᵀr‖ ≤ ‖J‖_F ‖r‖, and E‖Jᵀs‖² = ‖J‖_F² for random signs s: one backward pass.
    """
    total, largest, count = torch.zeros_like(theta), 0.0, 0
    with torch.enable_grad():
        leaf = theta.detach().clone().requires_grad_()
        for batch in objective.batches:
            with pure(objective.model, coupled=objective.coupled):
                outputs = objective.forward(leaf, batch)
            draws = torch.randint(0, 2, outputs.shape, generator=generator, device=generator.device)
            signs = (2 * draws - 1).to(outputs.device, outputs.dtype)
            total += torch.autograd.grad(outputs, leaf, signs)[0]
            largest = max(largest, float(outputs.detach().abs().max()))
            count += outputs.numel()
    scale = objective.likelihood.scale / objective.weight
    return scale * count**0.5 * float(total.double().norm()), largest


def _gap(hessian: Hessian, ggn: GGN, generator: torch.Generator) -> float:
    """Find the largest relative difference of the two matrices over a few random vectors."""
    block = rademacher(hessian, 3, generator=generator)
    gauss = ggn @ block
    difference = (hessian @ block - gauss).double().norm(dim=0)
    return float((difference / gauss.double().norm(dim=0).clamp(min=1e-300)).max())
