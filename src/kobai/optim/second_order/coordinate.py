"""Coordinate descent: one coordinate, or one block of parameters, at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kobai.curvature import Hessian
from kobai.linalg import Damped, LinearOperator, cholesky, conjugate_gradient
from kobai.optim.damping import check_damping
from kobai.optim.line_search import Backtracking, Line
from kobai.optim.second_order.base import (
    check_lr,
    is_finite,
    rebuild,
    record_of,
    refuse_second_group,
    start_record,
    trainable,
)
from kobai.optim.second_order.evaluator import as_objective, leave_gradient_of, line_diagnostics
from kobai.problem import Objective, ParameterSpace
from kobai.problem.blocks import BlockKind

Blocks = (
    Literal["coordinate", "parameter", "layer", "unit", "filter"]
    | Mapping[str, Sequence[str] | Int[Tensor, "_"]]
)
Order = Literal["cyclic", "random", "greedy"]
Minimizer = Callable[[Tensor], Tensor]

_COUNTS = (
    "updates",
    "values",
    "gradients",
    "products",
    "skipped_steps",
    "gradient_updates",
    "failed_searches",
)
_KINDS = ("coordinate", "parameter", "layer", "unit", "filter")


def soft_threshold(x: Float[Tensor, "*n"], amount: float) -> Float[Tensor, "*n"]:
    """sign(x) max(|x| − amount, 0): the minimiser of ½(z − x)² + amount |z| in z."""
    return x.sign() * (x.abs() - amount).clamp(min=0.0)


def lasso(
    gram: Float[Tensor, "k k"],
    target: Float[Tensor, "k n"],
    penalty: float,
    *,
    start: Float[Tensor, "k n"] | None = None,
    tol: float = 1e-12,
    max_sweeps: int = 1000,
) -> Float[Tensor, "k n"]:
    """Minimise ½ hᵀ G h − bᵀh + penalty ‖h‖₁ for every column, by exact coordinate steps.

    Args:
        gram: G, positive definite.
        target: b, one column a problem.
        penalty: Weight of the absolute values.
        start: First h; default zero.
        tol: Largest change in a sweep, relative to the largest entry, at which it ends.
        max_sweeps: Most sweeps over the coordinates.

    Source: Friedman, Hastie and Tibshirani 2010, Regularization paths for generalized linear models
    via coordinate descent, §2.
    """
    h = torch.zeros_like(target) if start is None else start.clone()
    for _ in range(max_sweeps):
        before = h.clone()
        for j in range(len(gram)):
            rest = target[j] - gram[j] @ h + gram[j, j] * h[j]
            h[j] = soft_threshold(rest, penalty) / gram[j, j]
        if float((h - before).abs().max()) <= tol * float(h.abs().max().clamp(min=1e-300)):
            break
    return h


@final
class CoordinateDescent(torch.optim.Optimizer):
    r"""Minimise over one block of θ with all others held fixed, then over the next.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)``. The step of a block is Newton's
    within it, −(H_bb + α)⁻¹ g_b, for α = 0 exact on a quadratic, shortened until the loss falls;
    where H_bb + α is not positive definite it is −g_b (counted). A block that can be solved in
    closed form brings its own minimiser. The gradient at the last block's start is left in
    ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: First trial step; 1 is the block's minimiser, between 1 and 2 over-relaxation.
        blocks: "coordinate"; "parameter", "layer", "unit" or "filter" as in
            `ParameterSpace.blocks`; or block name → names of parameters, or positions in θ, which
            together hold every coordinate once.
        order: "cyclic"; "random", each block drawn anew; "greedy", the block with the largest
            gradient per root of its size (Gauss-Southwell).
        updates: Blocks updated a step; None for as many as there are.
        damping: α; on minibatches a positive one keeps blocks from fitting a single batch.
        minimizers: Block name → function from θ to the block's new values, in the order of its
            positions. Trusted unless the loss rises by it, which moves nothing.
        dense_limit: Largest block solved densely; larger ones by conjugate gradients.
        max_iterations: Most iterations of those.
        generator: Draws the blocks of random order; default: its own, seed 0.

    Raises:
        ValueError: If a number is out of range, a name unknown, blocks overlap or leave something
            out, or nothing is trainable.

    Cost of an update: a gradient, as many products with the Hessian as the block is large (or as
    conjugate gradients take), and a value a trial.

    Source: Goodfellow, Bengio and Courville 2016, Deep Learning, §8.7.2; Wright 2015, Coordinate
    descent algorithms.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        blocks: Blocks = "coordinate",
        order: Order = "cyclic",
        updates: int | None = 1,
        damping: float = 0.0,
        minimizers: Mapping[str, Minimizer] | None = None,
        dense_limit: int = 200,
        max_iterations: int = 50,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(blocks, str) and blocks not in _KINDS:
            raise ValueError(f"blocks is one of {', '.join(_KINDS)} or a mapping; got {blocks!r}")
        if order not in ("cyclic", "random", "greedy"):
            raise ValueError(f"order is cyclic, random or greedy; got {order!r}")
        for name, count in (("updates", updates), ("max_iterations", max_iterations)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.model = model
        self.blocks, self.order, self.updates = blocks, order, updates
        self.minimizers = dict(minimizers or {})
        self.dense_limit, self.max_iterations = dense_limit, max_iterations
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        defaults = {"lr": check_lr(lr), "damping": check_damping(damping)}
        super().__init__(trainable(model), defaults)
        known = {name for name, _ in self._positions(ParameterSpace(model))}
        if strangers := set(self.minimizers) - known:
            raise ValueError(f"minimizers are for unknown blocks {sorted(strangers)}")
        start_record(self, _COUNTS)

    def __repr__(self) -> str:
        blocks = self.blocks if isinstance(self.blocks, str) else tuple(self.blocks)
        return (
            f"CoordinateDescent(lr={self.param_groups[0]['lr']:g}, blocks={blocks!r}, "
            f"order={self.order!r}, updates={self.updates})"
        )

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "updates" of blocks, "values", "gradients" and "products" asked for,
            "skipped_steps" (something was not finite), "gradient_updates" (the block's curvature
            was not positive) and "failed_searches" (the loss could not be lowered: nothing was
            moved). Of the last update: "block" and "status".
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
            closure: An `Objective` of the model.

        Returns:
            Its value before the step.

        Raises:
            TypeError: If it is anything else, such as a plain closure.
            ValueError: If it belongs to another model, or the model is not a function of θ now.
        """
        objective = as_objective(closure, self, self.model)
        group, record = self.param_groups[0], record_of(self)
        counts = record["counts"]
        blocks = self._positions(objective.space)
        returned: Any = None
        for _ in range(len(blocks) if self.updates is None else self.updates):
            theta = objective.theta()
            counts["gradients"] += 1
            loss, gradient = objective.value_and_grad(theta)
            returned = loss if returned is None else returned
            leave_gradient_of(objective, gradient)
            if not is_finite(loss, gradient):
                counts["skipped_steps"] += 1
                break
            if not group["lr"]:
                break
            name, index = self._choose(blocks, gradient, record)
            record["last"] = {"block": name, "status": "ok"}
            self._update(objective, theta, float(loss), gradient, name, index, record)
            counts["updates"] += 1
        counts["steps"] += 1
        return returned

    def _positions(self, space: ParameterSpace) -> list[tuple[str, Tensor]]:
        """Name and positions of every block."""
        device = space.device
        if self.blocks == "coordinate":
            index = torch.arange(space.dimension, device=device)
            return [(str(i), index[i : i + 1]) for i in range(space.dimension)]
        if isinstance(self.blocks, str):
            kind = cast(BlockKind, self.blocks)
            return [(b.name, b.indices.to(device)) for b in space.blocks(kind)]
        spans = dict(
            zip(space.names, torch.arange(space.dimension).split(space.sizes), strict=True)
        )
        found = []
        for name, members in self.blocks.items():
            if isinstance(members, Tensor):
                index = members.cpu()
            else:
                if unknown := [m for m in members if m not in spans]:
                    raise ValueError(
                        f"block {name!r} names {unknown}, which are not trainable parameters; "
                        f"choose from {', '.join(spans)}"
                    )
                index = torch.cat([spans[m] for m in members])
            found.append((name, index))
        together = torch.cat([index for _, index in found]).sort().values
        if not torch.equal(together, torch.arange(space.dimension)):
            raise ValueError(
                f"blocks must hold each of the {space.dimension} coordinates once; they hold "
                f"{len(together)}, {len(together.unique())} of them different"
            )
        return [(name, index.to(device)) for name, index in found]

    def _choose(
        self, blocks: list[tuple[str, Tensor]], gradient: Tensor, record: dict[str, Any]
    ) -> tuple[str, Tensor]:
        if self.order == "cyclic":
            at = record.get("position", 0) % len(blocks)
            record["position"] = at + 1
        elif self.order == "random":
            at = int(torch.randint(len(blocks), (1,), generator=self.generator))
        elif self.blocks == "coordinate":
            at = int(gradient.abs().argmax())
        else:
            at = max(
                range(len(blocks)), key=lambda i: float(gradient[blocks[i][1]].square().mean())
            )
        return blocks[at]

    def _update(
        self,
        objective: Objective,
        theta: Tensor,
        loss: float,
        gradient: Tensor,
        name: str,
        index: Tensor,
        record: dict[str, Any],
    ) -> None:
        """Move one block."""
        counts, lr = record["counts"], self.param_groups[0]["lr"]
        if name in self.minimizers:
            moved = theta.clone()
            moved[index] += lr * (self.minimizers[name](theta).reshape(-1) - theta[index])
            counts["values"] += 1
            after = objective.value(moved)
            rounding = 8 * torch.finfo(theta.dtype).eps * abs(loss)
            if is_finite(moved, after) and float(after) <= loss + rounding:
                objective.space.assign(moved)
                return
            counts["failed_searches"] += 1
            record["last"]["status"] = "no-decrease"
            return
        inside = gradient[index]
        if not bool(inside.any()):
            record["last"]["status"] = "stationary"
            return
        direction = torch.zeros_like(theta)
        direction[index] = self._newton(Hessian(objective, theta)[index], inside, record)

        def value(at: Tensor) -> Tensor:
            counts["values"] += 1
            return objective.value(at)

        line = Line(
            objective.value_and_grad, value, theta, direction, start=loss, gradient=gradient
        )
        found = Backtracking().search(line, lr)
        if found.step:
            objective.space.assign(line.point(found.step))
        else:
            counts["failed_searches"] += 1
            record["last"]["status"] = "no-decrease"

    def _newton(self, operator: LinearOperator, inside: Tensor, record: dict[str, Any]) -> Tensor:
        """−(H_bb + α)⁻¹ g_b, or −g_b."""
        counts, damping = record["counts"], self.param_groups[0]["damping"]
        direction: Tensor | None = None
        if len(inside) <= self.dense_limit:
            counts["products"] += len(inside)
            matrix = operator.dense()
            factor = cholesky((matrix + matrix.T) / 2, damping=damping)
            if factor.status in ("ok", "jittered"):
                direction = -factor.solve(inside)
        else:
            damped = Damped(operator, damping)
            found = conjugate_gradient(damped, -inside, max_iterations=self.max_iterations)
            counts["products"] += found.num_products
            if bool(found.value.any()):
                direction = found.value
        if direction is None or not is_finite(direction):
            counts["gradient_updates"] += 1
            record["last"]["status"] = "gradient"
            return -inside
        return direction

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        group = self.param_groups[0]
        arguments = {
            "lr": self.defaults["lr"],
            "damping": self.defaults["damping"],
            "blocks": self.blocks,
            "order": self.order,
            "updates": self.updates,
            "minimizers": self.minimizers,
            "dense_limit": self.dense_limit,
            "max_iterations": self.max_iterations,
        }
        return rebuild, (type(self), self.model, arguments, group["params"], self.state_dict())
