"""The neural tangent kernel of a finite network: inner products of output gradients.

Θ((n, k), (m, c)) = Σ_p ∂f_k(x_n)/∂θ_p ∂f_c(x_m)/∂θ_p, not divided by anything. Jacot, Gabriel and
Hongler 2018, Neural tangent kernel: convergence and generalization in neural networks (1806.07572).
"""

from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows import Rows
from kobai.curvature.rows.grams import for_output, for_trace, sum_of_grams
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.outer_products import mirrored
from kobai.curvature.scores import Scores
from kobai.curvature.structures.interface import layers_of
from kobai.kernels.example_jacobians import jacobian_rows
from kobai.kernels.inputs import Points, at_points, in_blocks
from kobai.kernels.operator import TangentKernel
from kobai.kernels.plan import MEMORY, Blocks, KernelPlan, Method, Outputs, make_plan
from kobai.problem import EmpiricalRisk


@overload
def ntk(
    objective: EmpiricalRisk,
    x1: Points | None = None,
    x2: Points | None = None,
    *,
    outputs: Outputs = "full",
    blocks: Literal["sum"] = "sum",
    method: Method | Literal["auto"] = "auto",
    memory: int = MEMORY,
    theta: Float[Tensor, " P"] | None = None,
) -> Float[Tensor, "..."]: ...
@overload
def ntk(
    objective: EmpiricalRisk,
    x1: Points | None = None,
    x2: Points | None = None,
    *,
    outputs: Outputs = "full",
    blocks: Literal["layer"],
    method: Method | Literal["auto"] = "auto",
    memory: int = MEMORY,
    theta: Float[Tensor, " P"] | None = None,
) -> dict[str, Float[Tensor, "..."]]: ...
def ntk(
    objective: EmpiricalRisk,
    x1: Points | None = None,
    x2: Points | None = None,
    *,
    outputs: Outputs = "full",
    blocks: Blocks = "sum",
    method: Method | Literal["auto"] = "auto",
    memory: int = MEMORY,
    theta: Float[Tensor, " P"] | None = None,
) -> Tensor | dict[str, Tensor]:
    """The tangent kernel between two sets of points, J(x1) J(x2)ᵀ.

    Args:
        objective: The network; its examples are the default points. Targets play no part.
        x1: Points of the rows: inputs in the form the model takes, a `Batch` or an objective of
            the same model; default: the objective's examples.
        x2: Points of the columns; default: those of the rows, and half the work.
        outputs: "full", "trace" (summed over equal outputs) or "diagonal" (equal outputs only).
        blocks: "sum", or "layer": one kernel for the parameters of each layer.
        method: "layers" contracts what captured layers were called with and the gradients in their
            outputs, in the cheaper of two orders; "jacobian" writes out the gradients of every
            example; "products" multiplies unit vectors. "auto" takes the fewest multiplications;
            `ntk_plan` says what that is, and the logger ``kobai.kernels`` at level INFO.
        memory: Bytes that the kernel and the work on it may take. Where the rows of all examples do
            not fit they are made anew by blocks.
        theta: Where; default: the module's parameters now.

    Returns:
        (N1, C, N2, C) for "full", (N1, N2) for "trace", (N1, N2, C) for "diagonal", C being all
        outputs of one example, flattened. A dict from layer to such arrays with ``blocks="layer"``.
        Memory: twice the result at most, once it exceeds 512 MiB.

    Raises:
        ValueError: If a setting is unknown, the kernel does not fit into `memory`, or the module
            is not a function of θ.

    Example:
        >>> import torch
        >>> from kobai import Problem
        >>> from kobai.kernels import ntk
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
        >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> ntk(Problem(model, "gaussian", train=(x, torch.ones(2, 1))).objective()).squeeze()
        tensor([[2., 2.],
                [2., 3.]])
    """
    plan, one, two = _prepare(objective, x1, x2, outputs, blocks, method, memory, theta)
    each = one.outputs_per_example
    if plan.method == "products":
        return _by_products(one, two, outputs)
    groups = {
        layer.name: layer.positions for layer in layers_of(one)
    } if blocks == "layer" else {"": tuple(range(len(one.parts)))}  # fmt: skip
    shared = one.objective.coupled
    rows, columns = one.objective.size, (one if two is None else two).objective.size
    if outputs == "full" or shared:
        found = {
            name: _assemble(plan, one, two, positions, lambda r: r, each)
            .view(rows, each, columns, each)
            for name, positions in groups.items()
        }  # fmt: skip
        if outputs != "full":
            found = {name: _reduced(kernel, outputs) for name, kernel in found.items()}
    elif outputs == "trace":
        found = {
            name: _assemble(plan, one, two, positions, lambda r: for_trace(r, each), 1)
            for name, positions in groups.items()
        }
    else:
        found = {
            name: torch.stack(
                [
                    _assemble(plan, one, two, own, lambda r, q=q: for_output(r, each, q), 1)
                    for q in range(each)
                ],
                2,
            )
            for name, own in groups.items()
        }
    return found if blocks == "layer" else found[""]


def ntk_plan(
    objective: EmpiricalRisk,
    x1: Points | None = None,
    x2: Points | None = None,
    *,
    outputs: Outputs = "full",
    blocks: Blocks = "sum",
    method: Method | Literal["auto"] = "auto",
    memory: int = MEMORY,
) -> KernelPlan:
    """How `ntk` would compute a kernel with the same arguments; prints as a sentence.

    Raises:
        ValueError: As `ntk`.
    """
    return _prepare(objective, x1, x2, outputs, blocks, method, memory, None)[0]


def _prepare(
    objective: EmpiricalRisk,
    x1: Points | None,
    x2: Points | None,
    outputs: Outputs,
    blocks: Blocks,
    method: Method | Literal["auto"],
    memory: int,
    theta: Tensor | None,
) -> tuple[KernelPlan, ScoreRows, ScoreRows | None]:
    if outputs not in ("full", "trace", "diagonal"):
        raise ValueError(f"outputs must be 'full', 'trace' or 'diagonal', got {outputs!r}")
    if blocks not in ("sum", "layer"):
        raise ValueError(f"blocks must be 'sum' or 'layer', got {blocks!r}")
    one = output_rows(at_points(objective, x1), theta)
    two = None if x2 is None else output_rows(at_points(objective, x2), theta)
    if two is not None and [p.kind for p in one.parts] != [p.kind for p in two.parts]:
        raise ValueError("the layers are called differently on the two sets of points")
    plan = make_plan(
        one, two, outputs=outputs, blocks=blocks, layers=len(layers_of(one)),
        method=method, memory=memory,
    )  # fmt: skip
    return plan, one, two


def output_rows(objective: EmpiricalRisk, theta: Tensor | None) -> ScoreRows:
    """Gradient rows of the outputs themselves."""
    return ScoreRows(objective, theta, Scores(likelihood=objective.likelihood, labels="outputs"))


def _assemble(
    plan: KernelPlan,
    one: ScoreRows,
    two: ScoreRows | None,
    positions: Sequence[int],
    select: Callable[[Rows], Rows],
    each: int,
) -> Float[Tensor, "R S"]:
    """Σ over parts of the Gram matrices, by blocks of examples that fit."""

    def pieces(source: ScoreRows) -> list[list[Rows]]:
        batches = jacobian_rows(source) if plan.method == "jacobian" else source.compact()
        return [[select(parts[i]) for i in positions] for parts in batches]

    size = one.objective.size
    heights = size * each
    result = one.theta.new_zeros(heights, heights if two is None else two.objective.size * each)
    sides = [_cut(source, plan.block) for source in (one, two) if source is not None]
    top = 0
    for i, upper in enumerate(sides[0]):
        rows = pieces(upper)
        bottom = top + sum(parts[0].count for parts in rows)
        left = 0
        for j, other in enumerate(sides[-1]):
            right = left + other.objective.size * each
            target = result[top:bottom, left:right]
            if two is not None or j > i:
                sum_of_grams(rows, pieces(other), result=target)
            elif j == i:
                sum_of_grams(rows, result=target)
            left = right
        top = bottom
    return mirrored(result) if two is None else result


def _cut(source: ScoreRows, block: int) -> list[ScoreRows]:
    """The same rows by blocks of examples."""
    if block >= source.objective.size:
        return [source]
    cut = [output_rows(risk, source.theta) for risk in in_blocks(source.objective, block)]
    if any([p.kind for p in own.parts] != [p.kind for p in source.parts] for own in cut):
        raise ValueError(
            "the layers are called differently on parts of the data; raise memory so that all "
            "examples are taken together"
        )
    return cut


def _by_products(one: ScoreRows, two: ScoreRows | None, outputs: Outputs) -> Tensor:
    """The kernel column by column."""
    operator = TangentKernel(
        one.objective, x2=None if two is None else two.objective, theta=one.theta
    )
    each = one.outputs_per_example
    kernel = operator.dense().view(operator.shape[0] // each, each, -1, each)
    return kernel if outputs == "full" else _reduced(kernel, outputs)


def _reduced(kernel: Float[Tensor, "N C M C"], outputs: Outputs) -> Tensor:
    equal = kernel.diagonal(dim1=1, dim2=3)
    return equal.sum(2) if outputs == "trace" else equal.contiguous()
