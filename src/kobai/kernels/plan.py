"""How a tangent kernel will be computed, counted before anything is."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Literal, get_args

from kobai.curvature.coverage import human_bytes
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.structures.interface import gram_cost, row_numbers

Method = Literal["layers", "jacobian", "products"]
Outputs = Literal["full", "trace", "diagonal"]
Blocks = Literal["sum", "layer"]

MEMORY = 2**32
"""Bytes that a kernel and the work on it may take unless said otherwise."""

LEAST_WORKSPACE = 2**29
"""Bytes below which the work on a small kernel is not cut."""

_PASS = 3e7
"""Multiplications that take as long as what a backward pass costs besides its own."""

_log = logging.getLogger("kobai.kernels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelPlan:
    """The way a kernel is computed, with what each way would cost.

    Attributes:
        method: The one taken.
        multiplications: Of every method that applies, passes through the network included.
        result: Bytes of the kernel.
        workspace: Bytes beyond it.
        block: Examples whose rows are held at a time; N or more when all are.
        reason: Why this method.
    """

    method: Method
    multiplications: Mapping[Method, float]
    result: int
    workspace: int
    block: int
    reason: str

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:.1e}" for name, count in self.multiplications.items())
        return (
            f"{self.method} ({self.reason}); multiplications: {counts}; kernel "
            f"{human_bytes(self.result)}, workspace {human_bytes(self.workspace)}, "
            f"{self.block} examples at a time"
        )


def make_plan(
    first: ScoreRows,
    second: ScoreRows | None,
    *,
    outputs: Outputs,
    blocks: Blocks,
    layers: int,
    method: Method | Literal["auto"],
    memory: int,
) -> KernelPlan:
    """Count the methods and choose.

    Args:
        first: Rows of the kernel's first points.
        second: Of the second ones, None for the same.
        outputs: Which outputs meet.
        blocks: One kernel, or one a layer.
        layers: How many layers there are.
        method: A name, or "auto" for the least count.
        memory: Bytes for result and workspace together.

    Raises:
        ValueError: If the kernel does not fit, or a method cannot do what is asked.
    """
    names = get_args(Method)
    if method != "auto" and method not in names:
        raise ValueError(f"method must be 'auto' or one of {list(names)}, got {method!r}")
    if method == "products" and blocks == "layer":
        raise ValueError("method='products' knows the sum over layers only; take 'layers'")
    itemsize = first.theta.itemsize
    each, coupled = first.outputs_per_example, first.objective.coupled
    one = first.objective.size
    two = one if second is None else second.objective.size
    wide = {"full": each * each, "trace": 1, "diagonal": each}[outputs]
    result = one * two * wide * itemsize * (layers if blocks == "layer" else 1)
    if result > memory:
        raise ValueError(
            f"a kernel of {human_bytes(result)} does not fit into memory={human_bytes(memory)}; "
            "take fewer examples, outputs='trace', a larger memory, or "
            "kobai.kernels.TangentKernel, which multiplies vectors without storing it"
        )
    workspace = min(max(memory - result, 1), max(result, LEAST_WORKSPACE))
    counts = _counts(first, second, outputs)
    if blocks == "layer":
        counts.pop("products", None)
    if coupled:
        counts.pop("jacobian")
        if method == "jacobian":
            raise ValueError(
                "examples of a coupled objective have no Jacobian each; take 'layers' or 'products'"
            )
    fewest = min(counts, key=lambda name: counts[name])
    chosen = fewest if method == "auto" else method
    reason = "fewest multiplications" if method == "auto" else "as asked"
    block = one if coupled else _block(first, second, chosen, workspace)
    plan = KernelPlan(
        method=chosen, multiplications=counts, result=result, workspace=workspace, block=block,
        reason=reason,
    )  # fmt: skip
    _log.info("%s", plan)
    return plan


def _counts(first: ScoreRows, second: ScoreRows | None, outputs: Outputs) -> dict[Method, float]:
    """Multiplications by method; a symmetric kernel is computed by half."""
    half = 0.5 if second is None else 1.0
    each = first.outputs_per_example
    sides = [first] if second is None else [first, second]
    examples = [float(side.objective.size) for side in sides]
    once = sum(
        math.prod(part.shape) * places
        for part, places in zip(first.parts, first.places, strict=True)
    )
    alone = sum(part.size for part in first.parts if part.kind == "jacobian")
    pairs = examples[0] * examples[-1]
    meet = each**2 if outputs == "full" else each
    layers, jacobian = 0.0, 0.0
    for count in examples:
        layers += count * once * (1 + each) + each * _PASS
        if alone:
            layers += each * count * (2 * count * once + _PASS)
        jacobian += each * count * (2 * once + _PASS)
    for part, places in zip(first.parts, first.places, strict=True):
        # The count for the square kernel of the first points, scaled to the pairs there are.
        scale = pairs / examples[0] ** 2 * meet / each**2
        layers += half * gram_cost(first, part, places) * scale
    jacobian += half * pairs * meet * first.theta.numel()
    columns = each * examples[-1]
    products = columns * (sum(examples) * 2 * once + len(examples) * _PASS)
    return {"layers": layers, "jacobian": jacobian, "products": products}


def _block(first: ScoreRows, second: ScoreRows | None, method: Method, workspace: int) -> int:
    """Examples whose rows fit, for two blocks at a time."""
    size = first.objective.size
    if method == "products":
        return size
    if method == "jacobian":
        numbers = float(first.outputs_per_example * first.theta.numel())
    else:
        # Half of the rows' share is for making them.
        numbers = 2 * sum(
            row_numbers(first, part, places)
            for part, places in zip(first.parts, first.places, strict=True)
        ) / size  # fmt: skip
    sides = size + (0 if second is None else second.objective.size)
    fits = workspace / (numbers * first.theta.itemsize)
    return size if fits >= sides else max(1, int(fits / 2))
