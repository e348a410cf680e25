"""The memory and counters of measured steps: plain numbers, so that they can be saved."""

import dataclasses
import math

CONTROL_COUNTS: tuple[str, ...] = (
    "models",
    "unmodelled_steps",
    "shortened_trials",
    "rejected_steps",
    "damping_raised",
    "damping_lowered",
    "damping_noise",
)
"""What is counted; see `KFAC.diagnostics`."""


@dataclasses.dataclass(slots=True)
class ControlState:
    """Numbers that measured steps remember.

    Attributes:
        rate: Coefficient α of the direction.
        momentum: Coefficient μ of the last update.
        share: Part of the model's step that is made.
        radius: Largest δᵀGδ of a step.
        bend: δᵀGδ of the last step.
        measured: ‖δ‖² of the last step that was held against its minibatch.
        bend_per_square: The same over ‖δ‖², at the last model.
        gradient_scale: Objective's derivative over that of the gradients as they are found.
        loss_scale: Factor of a gradient scaler.
        model_step: Step of the last model, or None.
        damping_step: Number of inversions at the last change of the damping.
        predicted: Change that the last step's model predicted; 0 where nothing waits for judgement.
        ratio: Its reduction ratio on the step's own examples.
        error: The ratio's standard error.
        repeated: Whether the last two models saw equal examples: full batches have no noise.
        examples: Fingerprint of the examples of the last model.
        urgent: Whether the next step needs a model.
    """

    rate: float = 0.0
    momentum: float = 0.0
    share: float = 1.0
    radius: float = math.inf
    bend: float = 0.0
    measured: float = math.inf
    bend_per_square: float = 0.0
    gradient_scale: float = 1.0
    loss_scale: float = 1.0
    model_step: int | None = None
    damping_step: int = -1
    predicted: float = 0.0
    ratio: float = 1.0
    error: float = 0.0
    repeated: bool = False
    examples: list[float] = dataclasses.field(default_factory=list)
    urgent: bool = False
