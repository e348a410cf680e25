"""How good each Fisher structure is on one network."""

from dataclasses import dataclass

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class LadderRung:
    """One structure held against the exact Fisher matrix F.

    Attributes:
        structure: Its name.
        frobenius_error: ‖M − F‖ / ‖F‖.
        cosine: Of the damped natural gradients of M and of F.
        kl_ratio: Length of its step in the metric F over that of the exact step.
        memory: Bytes kept.
        build: Multiplications to build it from captured gradients.
        solve: Multiplications to factorise it.
        status: ``ok`` or why the direction is missing.
    """

    structure: str
    frobenius_error: float
    cosine: float
    kl_ratio: float
    memory: int
    build: float
    solve: float
    status: str

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            floats=("frobenius_error", "cosine", "kl_ratio", "build", "solve"),
            integers=("memory",),
        )


@register
@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The Fisher structures from the dearest to the cheapest, each with its errors.

    Attributes:
        label: Name of the run or point.
        damping: λ of the directions.
        damping_form: How it enters.
        labels: Kind of the candidates; the reference has exact labels.
        examples: Number of examples it was measured on.
        rungs: One a structure.
        optimizer: Optimizer that led to the point; empty when none did.
        seed: Seed of that run, or None.
    """

    label: str
    damping: float
    damping_form: str
    labels: str
    examples: int
    rungs: tuple[LadderRung, ...]
    optimizer: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("damping",), integers=("examples",))
