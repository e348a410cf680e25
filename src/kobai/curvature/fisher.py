"""The Fisher information matrix of a network, whole or in a structure."""

from typing import final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.coverage import Cost, Coverage
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.scores import Labels, Scores
from kobai.curvature.structures import (
    ChainStructure,
    DiagonalStructure,
    EKFACStructure,
    FullStructure,
    KroneckerStructure,
    LayerStructure,
    Structure,
    TridiagonalStructure,
    UnitStructure,
)
from kobai.linalg import LinearOperator
from kobai.linalg.operators.solvable import DampingForm, MatrixFunction, SolvableOperator
from kobai.problem import EmpiricalRisk

StructureName = str
"""A name in `STRUCTURES`."""

STRUCTURES: dict[StructureName, Structure] = {
    "full": FullStructure(),
    "layer": LayerStructure(),
    "tridiagonal": TridiagonalStructure(),
    "chain": ChainStructure(),
    "unit": UnitStructure(),
    "kronecker": KroneckerStructure(),
    "ekfac": EKFACStructure(),
    "diagonal": DiagonalStructure(),
}
"""The structures by name, with their default settings, from the dearest to the cheapest; then
those given to `register_structure`."""
_OWN = frozenset(STRUCTURES)


def register_structure(name: str, structure: Structure) -> None:
    """Make a structure of one's own known by a name, wherever kobai takes one.

    It is then an operator (`Fisher`), a row of `kobai.kernels.isotropy` and a preconditioner of
    `kobai.optim.NaturalGradient`.

    Args:
        name: The name; it may replace one registered before, but none of kobai's own.
        structure: What is kept of the matrix. Its operator must be positive semi-definite, as
            `Fisher` declares it so.

    Raises:
        ValueError: If the name is one of kobai's own.
        TypeError: If `structure` is not a `Structure`.
    """
    if name in _OWN:
        raise ValueError(f"{name} is a structure of kobai's own; take another name")
    if not isinstance(structure, Structure):
        raise TypeError(f"register an object of a subclass of Structure, got {structure!r}")
    STRUCTURES[name] = structure


@final
class Fisher(SolvableOperator):
    """F = (1/W) Σₙ E[(Jₙᵀu)(Jₙᵀu)ᵀ] with u the score in the outputs, or a structure of it; P × P.

    W is the objective's normaliser. The kind (`labels`) and the structure are independent choices.
    Vectors are in the order of θ. The matrix is built at the first use; `coverage()` and `cost` are
    known before.

    Args:
        objective: The network, its likelihood and data.
        structure: "full" (matrix-free), "layer", "tridiagonal" (blocks beyond neighbouring layers
            zeroed: indefinite), "chain" (positive definite, tridiagonal inverse), "unit",
            "kronecker" (K-FAC), "ekfac", "diagonal"; or a `Structure` with settings of its own,
            such as ``KroneckerStructure("reduce")``.
        labels: "exact": the expectation over the model's own labels, as many backward passes as an
            example has outputs; equals the Gauss-Newton matrix. "sampled": labels drawn from the
            model. "observed": the data's labels: the *empirical* Fisher matrix, the uncentred
            covariance of the examples' gradients, which is another matrix and not an estimate.
        samples: Labels drawn per example, for "sampled".
        generator: Draws labels; required for "sampled". The draws are fixed at construction.
        theta: Where; default: the module's parameters now. A copy is taken.

    Attributes:
        source: The gradient rows that the matrix is made of.
        structure: The structure.
        labels: The kind.

    Raises:
        ValueError: If a name is unknown, `samples` is below 1, the generator is missing, θ has the
            wrong shape, or the module is not a function of θ, naming it.

    Example:
        >>> import torch
        >>> from kobai import Problem
        >>> from kobai.curvature import Fisher
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
        >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> problem = Problem(model, "gaussian", train=(torch.eye(2), torch.ones(2, 1)))
        >>> Fisher(problem.objective(), "kronecker").dense()
        tensor([[0.5000, 0.0000, 0.5000],
                [0.0000, 0.5000, 0.5000],
                [0.5000, 0.5000, 1.0000]])
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        structure: StructureName | Structure = "full",
        labels: Labels = "exact",
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
        theta: Float[Tensor, " P"] | None = None,
    ) -> None:
        if not isinstance(objective, EmpiricalRisk):
            raise TypeError(
                "a Fisher matrix needs the network's outputs and likelihood; got "
                f"{type(objective).__name__}; make an EmpiricalRisk by Problem(...).objective()"
            )
        if isinstance(structure, str) and structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {list(STRUCTURES)}, got {structure!r}")
        if labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {get_args(Labels)}, got {labels!r}")
        if samples < 1:
            raise ValueError(f"samples counts labels drawn an example, at least 1; got {samples}")
        seed = 0
        if labels == "sampled":
            if generator is None:
                raise ValueError("labels='sampled' needs generator=torch.Generator(), got None")
            draw = torch.randint(
                2**62, (), generator=generator, device=generator.device, dtype=torch.int64
            )
            seed = int(draw)
        self.structure: Structure = (
            STRUCTURES[structure] if isinstance(structure, str) else structure
        )
        self.labels: Labels = labels
        self.objective = objective
        self.source = ScoreRows(
            objective,
            theta,
            Scores(likelihood=objective.likelihood, labels=labels, samples=samples, seed=seed),
        )
        self._operator: SolvableOperator | None = None
        size = objective.space.dimension
        super().__init__(
            (size, size),
            dtype=self.source.theta.dtype,
            device=self.source.theta.device,
            symmetric=True,
            positive_semidefinite=self.structure.definite,
        )

    @property
    def theta(self) -> Float[Tensor, " P"]:
        """The point."""
        return self.source.theta

    @property
    def operator(self) -> SolvableOperator:
        """The structured matrix, built at the first use and kept."""
        if self._operator is None:
            self._operator = self.structure.build(self.source)
        return self._operator

    def coverage(self) -> Coverage:
        """Say which block every parameter has, its size, memory and why; prints as a table."""
        return self.structure.coverage(self.source)

    @property
    def cost(self) -> Cost:
        """Memory and multiplications of the whole matrix, known before it is built."""
        lines = self.coverage()
        passes = self.source.each
        if any(part.kind == "jacobian" for part in self.source.parts):
            passes += self.source.count
        return Cost(
            memory=sum(line.numbers for line in lines) * self.dtype.itemsize,
            passes=passes,
            build=sum(line.build for line in lines),
            solve=sum(line.solve for line in lines),
        )

    def trace(self) -> float:
        """Sum of the diagonal, exactly: no random probes."""
        return self.operator.trace()

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal."""
        return self.operator.diagonal()

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.operator @ columns

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self.operator.inverse(damping, damping_form)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self.operator.power(exponent, damping, damping_form)
