"""Share what methods of line searches have in common: where a search begins, and settings."""

from kobai.optim.entry import check_choice, check_positive
from kobai.optim.line_search import SEARCHES, LineSearch
from kobai.optim.second_order.base import SecondOrder


def first_trial(optimizer: SecondOrder, slope: float) -> float:
    """Give a first trial step: what the search makes of the last step, or the learning rate.

    A schedule acts by its ratio to the rate at the start.

    Args:
        optimizer: An optimizer that searches along lines.
        slope: Derivative along the direction.
    """
    trial, lr = optimizer.record.get("trial"), optimizer.param_groups[0]["lr"]
    if trial is None or not isinstance(optimizer.search, LineSearch):
        return lr
    resumed = optimizer.search.resume(trial["step"], trial["slope"] / slope if slope else 1.0)
    return lr if resumed is None else resumed * (lr / optimizer.defaults["lr"])


def check_line(name: str, lr: float, search: str, iterations: int) -> None:
    """Refuse settings of a method of line searches that are out of range, naming their flags."""
    check_positive(name, "lr", lr)
    check_choice(name, "search", search, tuple(SEARCHES))
    check_positive(name, "iterations", iterations)
