"""Coordinate descent: one coordinate, or one block of parameters, at a time."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kobai.curvature import Hessian
from kobai.linalg import Damped, LinearOperator, cholesky, conjugate_gradient
from kobai.optim.damping import check_damping
from kobai.optim.entry import OptimizerEntry, check_choice, check_positive, settings_of
from kobai.optim.entry import check_damping as check_damping_flag
from kobai.optim.line_search import Line, LineSearch, LineStep
from kobai.optim.second_order.base import Globalisation, SecondOrder
from kobai.optim.second_order.descent import LineModel, Proposal
from kobai.optim.second_order.evaluator import Evaluator, StartingPoint, is_finite
from kobai.problem import ParameterSpace
from kobai.problem.blocks import BlockKind

Blocks = (
    Literal["coordinate", "parameter", "layer", "unit", "filter"]
    | Mapping[str, Sequence[str] | Int[Tensor, "_"]]
)
Order = Literal["cyclic", "random", "greedy"]
Minimizer = Callable[[Tensor], Tensor]

_KINDS = ("coordinate", "parameter", "layer", "unit", "filter")


def soft_threshold(x: Float[Tensor, "*n"], amount: float) -> Float[Tensor, "*n"]:
    """Compute sign(x) max(|x| − amount, 0), the minimiser of ½(z − x)² + amount |z| in z."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoordinateDescentConfig:
    """Newton steps within one block of parameters at a time."""

    lr: float = 1.0
    """First trial step within a block."""
    blocks: Literal["coordinate", "parameter", "layer", "unit", "filter"] = "layer"
    """What is moved together."""
    order: Literal["cyclic", "random", "greedy"] = "cyclic"
    """Which block is next."""
    updates: int | None = 1
    """Blocks per minibatch (count); none: all."""
    damping: float = 0.1
    """Multiple of the identity added to a block's Hessian."""
    max_iterations: int = 10
    """Most iterations of the solve of a large block (count)."""

    def __post_init__(self) -> None:
        name = "coordinate-descent"
        check_positive(name, "lr", self.lr)
        check_positive(name, "max_iterations", self.max_iterations)
        check_damping_flag(name, self.damping)
        kinds = ("coordinate", "parameter", "layer", "unit", "filter")
        check_choice(name, "blocks", self.blocks, kinds)
        check_choice(name, "order", self.order, ("cyclic", "random", "greedy"))
        if self.updates is not None:
            check_positive(name, "updates", self.updates)


@final
class CoordinateDescent(SecondOrder):
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
        updates: Blocks updated per step; None for as many as there are.
        damping: α; on minibatches a positive one keeps blocks from fitting a single batch.
        minimizers: Block name → function from θ to the block's new values, in the order of its
            positions. Trusted unless the loss rises by it, which moves nothing.
        search: Line search within a block, by name or object.
        dense_limit: Largest block solved densely; larger ones by conjugate gradients.
        max_iterations: Most iterations of those.
        generator: Draws the blocks of random order; default: its own, seed 0.

    Raises:
        ValueError: If a number is out of range, a name unknown, blocks overlap or leave something
            out, or nothing is trainable.

    Cost of an update: a gradient, as many products with the Hessian as the block is large (or as
    conjugate gradients take), and a value per trial.

    `diagnostics` counts "updates" of blocks and "gradient_updates" (the block's curvature was not
    positive), and has of the last update its "block" and "status".

    Source: Goodfellow, Bengio and Courville 2016, Deep Learning, §8.7.2; Wright 2015, Coordinate
    descent algorithms.
    """

    quadratic = False

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        blocks: Blocks = "coordinate",
        order: Order = "cyclic",
        updates: int | None = 1,
        damping: float = 0.0,
        search: Globalisation = "backtracking",
        minimizers: Mapping[str, Minimizer] | None = None,
        dense_limit: int = 200,
        max_iterations: int = 50,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(blocks, str) and blocks not in _KINDS:
            raise ValueError(f"blocks is one of {', '.join(_KINDS)} or a mapping; got {blocks!r}")
        if order not in ("cyclic", "random", "greedy"):
            raise ValueError(f"order is cyclic, random or greedy; got {order!r}")
        if updates is not None and updates < 1:
            raise ValueError(f"updates must be at least 1, got {updates}")
        self.blocks, self.order, self.updates = blocks, order, updates
        self.minimizers = dict(minimizers or {})
        self.dense_limit, self.max_iterations = dense_limit, max_iterations
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        super().__init__(
            model,
            lr=lr,
            search=search,
            damping=check_damping(damping),
            counts=("updates", "gradient_updates"),
        )
        known = {name for name, _ in self._positions(ParameterSpace(model))}
        if strangers := set(self.minimizers) - known:
            raise ValueError(f"minimizers are for unknown blocks {sorted(strangers)}")

    def rounds(self, function: Evaluator) -> int:
        """Give the number of updates of a step."""
        if self.updates is not None:
            return self.updates
        assert function.objective is not None
        return len(self._positions(function.objective.space))

    def model_at(self, start: StartingPoint) -> "BlockModel":
        """Choose the next block."""
        blocks = self._positions(start.objective.space)
        name, index = self._choose(blocks, start.gradient, self.record)
        self.record["last"] |= {"block": name, "status": "ok"}
        self.record["counts"]["updates"] += 1
        return BlockModel(self, start, name, index)

    def _positions(self, space: ParameterSpace) -> list[tuple[str, Tensor]]:
        """Give name and positions of every block."""
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


@final
class BlockModel(LineModel):
    """The direction of Newton's method in one block."""

    def __init__(
        self, optimizer: CoordinateDescent, start: StartingPoint, name: str, index: Tensor
    ) -> None:
        self.start, self._optimizer = start, optimizer
        self._name, self._index = name, index

    def propose(self, damping: float) -> Proposal | None:
        """Compute −(H_bb + α)⁻¹ g_b, or go to the block's own minimiser."""
        optimizer, start, index = self._optimizer, self.start, self._index
        direction = torch.zeros_like(start.theta)
        if self._name in optimizer.minimizers:
            target = optimizer.minimizers[self._name](start.theta).reshape(-1)
            direction[index] = target - start.theta[index]
            return Proposal(direction=direction, search=Trusted())
        inside = start.gradient[index]
        if not bool(inside.any()):
            optimizer.record["last"]["status"] = "stationary"
            return None
        operator = Hessian(start.objective, start.theta)[index]
        direction[index], status = self._newton(operator, inside, damping)
        return Proposal(direction=direction, status=status)

    def _newton(
        self, operator: LinearOperator, inside: Tensor, damping: float
    ) -> tuple[Tensor, str]:
        """Solve the block's system; −g_b where its curvature is not positive."""
        optimizer, counts = self._optimizer, self._optimizer.record["counts"]
        direction: Tensor | None = None
        if len(inside) <= optimizer.dense_limit:
            counts["products"] += len(inside)
            matrix = operator.dense()
            factor = cholesky((matrix + matrix.T) / 2, damping=damping)
            if factor.status in ("ok", "jittered"):
                direction = -factor.solve(inside)
        else:
            found = conjugate_gradient(
                Damped(operator, damping), -inside, max_iterations=optimizer.max_iterations
            )
            counts["products"] += found.num_products
            if bool(found.value.any()):
                direction = found.value
        if direction is None or not is_finite(direction):
            counts["gradient_updates"] += 1
            return -inside, "gradient"
        return direction, "ok"


@final
class Trusted(LineSearch):
    """Take the first step unless the loss rises by it."""

    downhill: ClassVar[bool] = False

    def resume(self, step: float, ratio: float) -> float | None:
        """Begin with the learning rate again."""
        return None

    def search(self, line: Line, first: float) -> LineStep:
        """Ask for one value."""
        found, origin = line.value(first), line.origin
        if found.value <= origin.value + line.rounding:
            return LineStep(step=first, value=found.value, slope=found.slope, status="ok")
        return LineStep(step=0.0, value=origin.value, slope=origin.slope, status="max-evaluations")


ENTRY = OptimizerEntry(
    name="coordinate-descent",
    config=CoordinateDescentConfig,
    make=lambda model, likelihood, config, generator: CoordinateDescent(
        model, **settings_of(config), generator=generator
    ),
    space={"lr": (1e-3, 10.0, "log")},
    color="#b09cf0",
    dash="dashdot",
    needs_objective=True,
    on_all_data=True,
)
