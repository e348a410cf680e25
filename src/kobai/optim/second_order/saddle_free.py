"""Saddle-free Newton: |H| in place of H, so that negative curvature repels."""

import dataclasses
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.curvature import Hessian
from kobai.linalg import Function, LinearOperator, eigh
from kobai.linalg.spectra.lanczos import KrylovBasis
from kobai.optim.damping import Damping
from kobai.optim.entry import OptimizerEntry, check_damping, check_positive, settings_of
from kobai.optim.second_order.base import Globalisation, SecondOrder
from kobai.optim.second_order.descent import LossModel, Proposal
from kobai.optim.second_order.evaluator import Counted, StartingPoint, is_finite


def krylov_spectrum(
    operator: LinearOperator,
    start: Float[Tensor, " P"],
    size: int,
    *,
    generator: torch.Generator,
) -> tuple[Float[Tensor, " k"], Float[Tensor, "P k"]]:
    """Compute eigenvalues and orthonormal eigenvectors on the Krylov space of a vector.

    Args:
        operator: A symmetric operator.
        start: The vector, which lies in the space.
        size: Dimension k of the space; less where it closes earlier.
        generator: Generator that the basis asks for and that is not drawn from.

    Returns:
        (k,) Ritz values, ascending, float64, and (P, k) Ritz vectors. Cost: k products.
    """
    basis = KrylovBasis(operator, min(size + 1, operator.shape[0]), generator=generator)
    frontier = basis.inject(start.unsqueeze(1))
    while frontier and len(basis.multiplied) < size:
        if not basis.expand([frontier[0]]):
            break
        frontier = list(basis.frontier)
    ritz = basis.ritz()
    return ritz.values, basis.vectors(ritz.coefficients)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaddleFreeNewtonConfig:
    """Newton's method with the absolute Hessian, which negative curvature repels."""

    lr: float = 1.0
    """Factor on the step."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the absolute Hessian; auto: by the reduction ratio."""
    subspace: int = 20
    """Dimension of the Krylov space beyond 500 parameters (count)."""

    def __post_init__(self) -> None:
        check_positive("saddle-free-newton", "lr", self.lr)
        check_positive("saddle-free-newton", "subspace", self.subspace)
        check_damping("saddle-free-newton", self.damping)


@final
class SaddleFreeNewton(SecondOrder):
    r"""θ ← θ − η (|H| + α)⁻¹ ∇L, |H| the Hessian with its eigenvalues made positive.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)``. Where curvature is positive it
    is Newton's method; along negative curvature it goes downhill, away from the saddle, and faster
    the flatter the saddle is. Up to `dense_limit` parameters all eigenvectors are used; beyond, the
    Krylov space of H and the gradient of dimension `subspace`, outside of which nothing moves. The
    gradient is left in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: η, usually 1.
        damping: α: a number or a schedule step ↦ number (every finite step is then made), "auto"
            (a step is made only if it lowers the loss, α by the reduction ratio, with |H| in the
            model), or a `LevenbergMarquardt` rule with ``noise=0.0``.
        search: None; a line search by name or object; a `TrustRegion`, in which the model with |H|
            is minimised (α is then a number, and 0 for "auto"); or a `LevenbergMarquardt` rule, as
            for `damping`.
        dense_limit: Most parameters for which the matrix is made.
        subspace: Dimension of the Krylov space.
        max_trials: Most trials per step.

    Raises:
        ValueError: If a number is out of range or nothing is trainable.
        TypeError: If the damping is none of its forms.

    Cost of a step: a gradient, P products with H and P³, or `subspace` products, and a value per
    trial.

    `diagnostics` has of the last step also "negative" (eigenvalues below zero among those seen) and
    "smallest" of them.

    Source: Dauphin et al. 2014, Identifying and attacking the saddle point problem in high-
    dimensional non-convex optimization (§6, Algorithm 1).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        damping: Damping = "auto",
        search: Globalisation | None = None,
        dense_limit: int = 500,
        subspace: int = 50,
        max_trials: int = 20,
    ) -> None:
        if subspace < 1:
            raise ValueError(f"subspace must be at least 1, got {subspace}")
        self.dense_limit, self.subspace = dense_limit, subspace
        self.max_trials = max_trials
        super().__init__(model, lr=lr, search=search, damping=damping)

    def model_at(self, start: StartingPoint) -> "AbsoluteModel | None":
        """Find the eigenvalues of the Hessian, or those in a Krylov space."""
        counts, last = self.record["counts"], self.record["last"]
        if not bool(start.gradient.any()):
            last["status"] = "stationary"
            return None
        values, vectors = self._spectrum(
            Counted(Hessian(start.objective, start.theta), counts), start.gradient
        )
        if not is_finite(values, vectors):
            counts["skipped_steps"] += 1
            return None
        smallest = float(values[0]) if len(values) else 0.0
        last |= {"negative": int((values < 0).sum()), "smallest": smallest}
        return AbsoluteModel(start, values, vectors)

    def _spectrum(self, hessian: LinearOperator, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if len(gradient) <= self.dense_limit:
            matrix = hessian.dense()
            found = eigh((matrix + matrix.T) / 2)
            return found.values, found.vectors
        # The basis wants a generator for random starts, of which there are none here.
        unused = torch.Generator(device=gradient.device)
        return krylov_spectrum(hessian, gradient, self.subspace, generator=unused)


@final
class AbsoluteModel(LossModel):
    """The model with B = |H|, in the eigenbasis."""

    def __init__(self, start: StartingPoint, values: Tensor, vectors: Tensor) -> None:
        self.start, self._vectors = start, vectors
        self._magnitudes = values.to(device=start.theta.device, dtype=torch.float64).abs()
        self._inside = vectors.T.to(torch.float64) @ start.gradient.double()
        self._share = torch.zeros_like(self._inside)

    def propose(self, damping: float) -> Proposal:
        """Divide the gradient by the shifted magnitudes."""
        shifted = self._magnitudes + damping
        # A flat direction without damping has no length; it is left alone.
        self._share = torch.where(shifted > 0, -self._inside / shifted, 0.0)
        direction = (self._vectors.double() @ self._share).to(self.start.gradient)
        return Proposal(direction=direction)

    def predict(self, made: Proposal, factor: float) -> float:
        """Compute the model's change by factor · p, the last direction proposed."""
        share = factor * self._share
        return float(self._inside @ share + 0.5 * (self._magnitudes * share.square()).sum())

    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Compute pᵀ|H|p."""
        share = self._vectors.T.double() @ direction.double()
        return float((self._magnitudes * share.square()).sum())

    def operator(self) -> LinearOperator:
        """Give |H|."""
        start, vectors = self.start, self._vectors.double()

        def products(columns: Tensor) -> Tensor:
            inside = self._magnitudes.unsqueeze(1) * (vectors.T @ columns.double())
            return (vectors @ inside).to(columns)

        size = len(start.theta)
        return Function(
            products, (size, size), dtype=start.theta.dtype, device=start.theta.device,
            symmetric=True,
        )  # fmt: skip


ENTRY = OptimizerEntry(
    name="saddle-free-newton",
    config=SaddleFreeNewtonConfig,
    make=lambda model, likelihood, config, generator: SaddleFreeNewton(
        model, **settings_of(config)
    ),
    space={"lr": (1e-2, 1.0, "log"), "damping": (1e-4, 1.0, "log")},
    color="#b09cf0",
    dash="dot",
    needs_objective=True,
    on_all_data=True,
)
