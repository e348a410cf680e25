"""How a Fisher structure moves outputs: evenly in all directions, or not."""

from dataclasses import dataclass

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class Isotropy:
    """The kernel K̄ = J (F + λ)⁻¹ Jᵀ/N of one structure, held against α times the identity.

    Attributes:
        structure: Its name.
        alpha: α, the mean diagonal of K̄.
        spread: ‖K̄ − α‖ / ‖α‖ in the Frobenius norm: 0 for isotropy.
        worst: The largest entry of K̄ − α, over α.
        prediction: α of a wide network as λ → 0, from sizes alone; NaN where there is no theory.
        expected: Whether theory expects isotropy there.
        reasons: Which assumptions fail, and what else to know.
        learning_rate: 1/α, one step to the targets in the linearised network.
        cost: Multiplications of building and factorising once, backward passes included.
        memory: Bytes kept.
        passes: Backward passes over the data.
        status: ``ok``, ``pseudo-inverse`` (undamped and singular: the limit λ → 0), or what failed.
    """

    structure: str
    alpha: float
    spread: float
    worst: float
    prediction: float
    expected: bool
    reasons: tuple[str, ...]
    learning_rate: float
    cost: float
    memory: int
    passes: int
    status: str

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            floats=("alpha", "spread", "worst", "prediction", "learning_rate", "cost"),
            integers=("memory", "passes"),
            booleans=("expected",),
        )


@register
@dataclass(frozen=True, kw_only=True)
class IsotropyTable:
    """Fisher structures from the dearest to the cheapest, each with its isotropy.

    Attributes:
        label: Name of the run or point.
        damping: λ.
        damping_form: How it enters Kronecker factors.
        examples: N.
        outputs: C, of one example.
        directions: In which residuals can point: N C, or N (C − 1) for softmax.
        tolerance: Spread up to which a structure counts as isotropic.
        cheapest: The structure of least cost whose spread is within the tolerance (or within that
            of the exact matrix, if larger); empty if there is none.
        rows: One a structure.
        optimizer: Optimizer that led to the point; empty when none did.
        seed: Seed of that run, or None.
    """

    label: str
    damping: float
    damping_form: str
    examples: int
    outputs: int
    directions: int
    tolerance: float
    cheapest: str
    rows: tuple[Isotropy, ...]
    optimizer: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            floats=("damping", "tolerance"),
            integers=("examples", "outputs", "directions"),
        )
