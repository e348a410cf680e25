"""Begin a line search along a direction that has no length of its own."""

from kobai.optim.line_search import LineSearch
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
