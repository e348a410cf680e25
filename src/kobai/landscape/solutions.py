"""How far a run got: local, global or true minimum, from its losses alone."""

import math

import numpy as np
from jaxtyping import Float

from kobai.results import History, Solution

PLATEAU = 0.01
"""Changes of the training loss up to this share of its scale are standing still."""

ZERO = 0.01
"""Losses up to this are nearly zero (nats)."""

PATIENCE = 3
"""For so many records in a row."""


def classify(
    history: History,
    *,
    plateau: float = PLATEAU,
    zero: float = ZERO,
    patience: int = PATIENCE,
    chance: float | None = None,
) -> Solution:
    """Classify a run by the definitions of Wang & Thawonmas, Table 1, with stated tolerances.

    With T_i the training loss and V_i the validation loss of record i (one an epoch, if the run was
    evaluated so): a local minimum where T_{i+1} ≈ T_i, a global one where both are ≈ 0, a true one
    where V_i ≈ 0 as well. T_{i+1} ≈ T_i means |T_{i+1} − T_i| ≤ plateau · scale for `patience`
    records in a row, and the epoch counted is the last of them; ≈ 0 means at most `zero`. (The text
    of the source once speaks of the validation loss for a global minimum; the table decides here.)
    The scale is `chance` where it is given, else T_0: a first loss can be anything, such as that of
    a network with batch normalisation whose averages are not set yet.

    Args:
        history: The run; V is the validation loss, or the test loss where there is none.
        plateau: What standing still is, as a share of the scale.
        zero: What nearly zero is, in the loss's units.
        patience: How many records in a row.
        chance: Loss of the best constant prediction, the scale of the loss; a local minimum within
            5 % of it, or above, is called trivial, such as that of a network whose units have died.

    Returns:
        The best class reached, and the epoch at which each was first reached.

    Raises:
        ValueError: If a tolerance is not positive, or the run has no training loss.
    """
    if not (plateau > 0 and zero > 0 and patience >= 1):
        raise ValueError(
            f"tolerances are positive, got plateau={plateau}, zero={zero}, patience={patience}"
        )
    train = np.asarray(history.train_loss)
    if not len(train) or not np.isfinite(train[0]):
        raise ValueError("the run has no training loss to classify it by")
    measured = [history.validation_loss, history.test_loss]
    validation = next((v for v in measured if np.isfinite(v).any()), np.full(len(train), np.nan))
    small = np.zeros(len(train), dtype=bool)
    with np.errstate(invalid="ignore"):
        scale = abs(float(train[0])) if chance is None else chance
        small[1:] = np.abs(np.diff(train)) <= plateau * scale
        still = _in_a_row(small, patience)
        nearly_zero = still & (train <= zero)
        true = nearly_zero & (validation <= zero)
    places = {
        kind: int(np.flatnonzero(where)[0]) if where.any() else None
        for kind, where in (("LM", still), ("GM", nearly_zero), ("TM", true))
    }
    reached = [kind for kind, place in places.items() if place is not None]
    epochs = {
        kind: math.nan if place is None else float(history.epoch[place])
        for kind, place in places.items()
    }
    local = places["LM"]
    local_loss = math.nan if local is None else float(train[local])
    finite = train[np.isfinite(train)]
    return Solution(
        label=history.label,
        kind=reached[-1] if reached else "none",
        local_epoch=epochs["LM"],
        global_epoch=epochs["GM"],
        true_epoch=epochs["TM"],
        local_loss=local_loss,
        least_loss=float(finite.min()),
        final_loss=float(train[-1]),
        final_validation_loss=float(validation[-1]),
        epochs=float(history.epoch[-1]),
        plateau=plateau,
        zero=zero,
        patience=patience,
        trivial=chance is not None and local_loss >= 0.95 * chance,
        note=history.note if history.status in ("diverged", "interrupted") else "",
    )


def _in_a_row(small: Float[np.ndarray, " T"] | np.ndarray, patience: int) -> np.ndarray:
    """Tell for each record whether it ends a row of so many that are true."""
    counts, run = np.zeros(len(small), dtype=int), 0
    for i, value in enumerate(small):
        run = run + 1 if value else 0
        counts[i] = run
    return counts >= patience
