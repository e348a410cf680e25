"""The largest learning rate at which an optimizer is stable, from one eigenvalue, with its error.

On a quadratic with curvature λ each method is a linear recursion in (θ_t, θ_{t−1}); it contracts
while both roots of its polynomial are inside the unit circle. With step η, all eigenvalues in
(0, λ_max], momentum β:

- gradient descent, θ' = θ − η g: η λ < 2.
- heavy ball, v' = β v + g, θ' = θ − η v' (torch.optim.SGD): z² − (1 + β − ηλ) z + β, so
  η λ < 2 + 2β (Polyak 1964).
- Nesterov, gradient at the point looked ahead to: z² − (1 + β)(1 − ηλ) z + β (1 − ηλ); at z = −1
  it is 1 + (1 + 2β)(1 − ηλ), so η λ < (2 + 2β)/(1 + 2β).
- Adam with a slow second moment: m' = β₁ m + (1 − β₁) g, θ' = θ − η P⁻¹ m', heavy ball with
  η (1 − β₁) on P⁻¹H: η λ_max(P⁻¹H) < (2 + 2β₁)/(1 − β₁) (Cohen et al. 2022, Adaptive gradient
  methods at the edge of stability).
- any of them with a preconditioner P: λ_max(P⁻¹H), found as that of the symmetric P^{−½} H P^{−½}.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.ggn import GGN
from kobai.curvature.hessian import Hessian
from kobai.linalg import Diagonal, LinearOperator, Product, eigenvalues
from kobai.linalg.operators.solvable import DampingForm, SolvableOperator
from kobai.problem import EmpiricalRisk, Objective, ParameterSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticalLearningRate:
    """The learning rate above which steps along the sharpest direction grow.

    Attributes:
        value: η_c; infinite where no direction curves upwards.
        error: Bound on its error that follows from the eigenvalue's.
        eigenvalue: λ_max, of P⁻¹H with a preconditioner.
        eigenvalue_error: Bound on its error, from the residual of the eigenvector.
        factor: η_c λ_max, such as 2.
        rule: The formula, in words.
        num_products: Products with the curvature matrix.
        status: "converged", or why not: "flat" (λ_max ≤ 0), or a status of the eigenvalue search or
            of the preconditioner's factorisation.
    """

    value: float
    error: float
    eigenvalue: float
    eigenvalue_error: float
    factor: float
    rule: str
    num_products: int
    status: str

    def __str__(self) -> str:
        return (
            f"{self.value:.4g} ± {self.error:.1g} ({self.rule}, λ_max {self.eigenvalue:.4g} ± "
            f"{self.eigenvalue_error:.1g}, {self.status})"
        )


def critical_learning_rate(
    objective: Objective | LinearOperator,
    momentum: float | int = 0.0,
    preconditioner: SolvableOperator | Float[Tensor, " P"] | None = None,
    *,
    nesterov: bool = False,
    adam_beta1: float | None = None,
    damping: float | int = 0.0,
    damping_form: DampingForm = "exact",
    gauss_newton: bool = False,
    theta: Float[Tensor, " P"] | None = None,
    tol: float = 1e-3,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> CriticalLearningRate:
    """The critical learning rate of a full-batch optimizer at a point, by the module's rules.

    Args:
        objective: The loss, whose Hessian counts; or a symmetric operator in its place.
        momentum: β of heavy ball, or of Nesterov's method.
        preconditioner: P: a matrix with an inverse, such as ``Fisher(objective, "kronecker")``, or
            the entries of a diagonal one (`adam_diagonal` reads them off an optimizer).
        nesterov: Nesterov's form of momentum.
        adam_beta1: β₁ of an averaged gradient, (1 − β₁) g, in place of momentum.
        damping: Added to the preconditioner as the optimizer does.
        damping_form: See `kobai.linalg.SolvableOperator`.
        gauss_newton: The Gauss-Newton matrix in place of the Hessian.
        theta: Where; default: the module's parameters now.
        tol: Relative accuracy of the eigenvalue.
        max_products: Budget of products.
        generator: Draws the starting vector; default: one of seed 0.

    Returns:
        The value with an error bar. Cost: the products it reports, and with a preconditioner one
        eigendecomposition of it and two products with P^{−½} for each.

    Raises:
        ValueError: If a number is out of range, rules contradict each other, or sizes differ.
        TypeError: If the preconditioner has no inverse.
    """
    factor, rule = _rule(momentum, nesterov, adam_beta1)
    if isinstance(objective, LinearOperator):
        matrix = objective
    elif gauss_newton:
        if not isinstance(objective, EmpiricalRisk):
            raise TypeError("gauss_newton=True needs an EmpiricalRisk, which has outputs")
        matrix = GGN(objective, theta)
    else:
        matrix = Hessian(objective, theta)
    status = "converged"
    if preconditioner is not None:
        matrix, status = _similar(matrix, preconditioner, damping, damping_form)
        rule += " of P⁻¹H"
    if status not in ("converged", "jittered"):
        return CriticalLearningRate(
            value=math.nan, error=math.nan, eigenvalue=math.nan, eigenvalue_error=math.nan,
            factor=factor, rule=rule, num_products=0, status=f"preconditioner {status}",
        )  # fmt: skip
    top = eigenvalues(
        matrix, 1, which="largest", tol=tol, max_products=max_products,
        generator=torch.Generator().manual_seed(0) if generator is None else generator,
    )  # fmt: skip
    if top.values.numel() == 0:
        value, error, highest, spread = math.nan, math.nan, math.nan, math.nan
        status = top.status
    else:
        highest, spread = float(top.values[-1]), float(top.errors[-1])
        status = top.status if top.status != "converged" else status
        if highest <= 0:
            value, error, status = math.inf, math.nan, "flat"
        else:
            value = factor / highest
            error = factor * spread / (highest * max(highest - spread, 1e-300))
    return CriticalLearningRate(
        value=value, error=error, eigenvalue=highest, eigenvalue_error=spread, factor=factor,
        rule=rule, num_products=top.num_products, status=status,
    )  # fmt: skip


def adam_diagonal(optimizer: torch.optim.Optimizer, space: ParameterSpace) -> Float[Tensor, " P"]:
    """The diagonal P = √v̂ + ε that Adam divides by now, in the order of θ.

    Args:
        optimizer: `torch.optim.Adam` or `AdamW` that has made a step.
        space: Its parameters.

    Raises:
        ValueError: If a parameter has no second moment yet.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = dict(space.module.named_parameters())
    pieces = {}
    for name in space.names:
        state = optimizer.state.get(named[name], {})
        if "exp_avg_sq" not in state:
            raise ValueError(
                f"{name} has no second moment in this {type(optimizer).__name__}; make a step first"
            )
        group = groups[id(named[name])]
        correction = 1.0 - group["betas"][1] ** float(state["step"])
        moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        pieces[name] = (moment / correction).sqrt() + group["eps"]
    return space.flatten(pieces).detach()


def _rule(momentum: float | int, nesterov: bool, adam_beta1: float | None) -> tuple[float, str]:
    """η_c λ_max and its name."""
    for name, value in (("momentum", momentum), ("adam_beta1", adam_beta1 or 0.0)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} lies in [0, 1), got {value}")
    if adam_beta1 is not None:
        if momentum or nesterov:
            raise ValueError("adam_beta1 is momentum of its own kind; leave momentum at 0")
        return (2 + 2 * adam_beta1) / (1 - adam_beta1), "(2 + 2β₁)/((1 − β₁) λ_max)"
    if nesterov:
        return (2 + 2 * momentum) / (1 + 2 * momentum), "(2 + 2β)/((1 + 2β) λ_max)"
    if momentum:
        return 2 + 2 * momentum, "(2 + 2β)/λ_max"
    return 2.0, "2/λ_max"


def _similar(
    matrix: LinearOperator,
    preconditioner: SolvableOperator | Tensor,
    damping: float | int,
    damping_form: DampingForm,
) -> tuple[LinearOperator, str]:
    """P^{−½} H P^{−½} and how P's power went."""
    if isinstance(preconditioner, Tensor):
        if not bool((preconditioner + damping > 0).all()):
            raise ValueError("a diagonal preconditioner has positive entries")
        preconditioner = Diagonal(preconditioner.to(matrix.dtype))
    if not isinstance(preconditioner, SolvableOperator):
        raise TypeError(
            "the preconditioner is a matrix with an inverse, such as Fisher(objective, "
            f"'kronecker'), or a diagonal's entries; got {type(preconditioner).__name__}"
        )
    if preconditioner.shape != matrix.shape:
        raise ValueError(
            f"the preconditioner has shape {preconditioner.shape}, the curvature {matrix.shape}"
        )
    root = preconditioner.power(-0.5, float(damping), damping_form)
    similar = Product(
        (root, matrix, root),
        symmetric=True,
        positive_semidefinite=matrix.positive_semidefinite,
    )
    return similar, "converged" if root.status == "ok" else root.status
