"""Steepest descent: along the negative gradient, as far as a line search says."""

from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.optim.line_search import Search, as_search
from kobai.optim.second_order.base import (
    check_lr,
    rebuild,
    record_of,
    refuse_second_group,
    start_record,
    trainable,
)
from kobai.optim.second_order.evaluator import (
    LINE_COUNTS,
    Asked,
    check_iterations,
    descend,
    first_trial,
    line_diagnostics,
)


@final
class SteepestDescent(torch.optim.Optimizer):
    r"""θ ← θ − ε* ∇L with ε* from a line search.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)`` or ``optimizer.step(closure)``.
    With the exact search successive directions are orthogonal: the zig-zag of an ill-conditioned
    valley. The gradient before the step is left in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: First trial step of the first iteration; later ones begin where the last one ended. With
            ``search="constant"`` the step itself.
        search: "backtracking", "strong-wolfe", "exact", "constant", or a `LineSearch`.
        iterations: Iterations a step, all on the same data.
        tol: Largest magnitude of a gradient component at which nothing is moved any more.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.

    Source: Cauchy 1847; Goodfellow, Bengio and Courville 2016, Deep Learning, §8.6.2.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        search: Search = "backtracking",
        iterations: int = 1,
        tol: float = 0.0,
    ) -> None:
        check_iterations(iterations, tol)
        self.model = model
        self.search = as_search(search)
        self.iterations, self.tol = iterations, tol
        super().__init__(trainable(model), {"lr": check_lr(lr)})
        start_record(self, LINE_COUNTS)

    def __repr__(self) -> str:
        lr = self.param_groups[0]["lr"]
        return f"SteepestDescent(lr={lr:g}, search={self.search}, iterations={self.iterations})"

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "iterations", "values" and "gradients" asked for, "products" with the
            Hessian, "skipped_steps" (the loss or gradient was not finite), "failed_searches" (no
            decrease was found) and "restarts". Of the last step: its "status" ("max-iterations",
            "stationary", "no-step", "no-decrease" or "non-finite"), the status "line" of its last
            search and the "step" it found.
        """
        return line_diagnostics(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the one group of the constructor.

        Raises:
            ValueError: At a second group.
        """
        super().add_param_group(param_group)
        refuse_second_group(self)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step.

        Args:
            closure: An `Objective` of the model, or a closure.

        Returns:
            Its value before the step.

        Raises:
            TypeError: If it cannot be asked.
            ValueError: If it belongs to another model, or the model is not a function of θ now.
        """

        def direct(gradient: Tensor) -> tuple[Tensor, float]:
            slope = -float(gradient.double().square().sum())
            return -gradient, first_trial(self, self.search, slope)

        return descend(
            self,
            Asked(closure, self, self.model),
            search=self.search,
            iterations=self.iterations,
            tol=self.tol,
            direct=direct,
            learn=None,
            forget=lambda: record_of(self).pop("trial", None),
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        group = self.param_groups[0]
        arguments = {"search": self.search, "iterations": self.iterations, "tol": self.tol}
        arguments["lr"] = self.defaults["lr"]
        return rebuild, (type(self), self.model, arguments, group["params"], self.state_dict())
