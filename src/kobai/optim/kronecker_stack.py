"""Kronecker-factored blocks as an optimizer holds them: averages, inverses and momentum.

Blocks of equal shape lie in one stack, so that one batched factorisation and two batched products
serve all of them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.curvature.factor_sums import FactorSums
from kobai.curvature.kronecker import KroneckerFactors
from kobai.curvature.shifted_inverse import REPLACED, InverseMethod, unread_inverse
from kobai.layers import LayerForm
from kobai.layers.moments import multiplies_bfloat16
from kobai.optim.averages import factor_dtype, inner, past_weight
from kobai.optim.coverage import KroneckerLayer
from kobai.optim.device_step import kept_gradient, kept_share
from kobai.optim.gradient_rows import GradientRows
from kobai.optim.inversions import Inversions

_LEAST_ALONE = 100_000
"""Entries of a matrix from which on a CPU nothing is gained by handling several together, and
something by choosing a route for each: products from rows, or in two pieces."""

_PIECES_ERROR = 0.01
"""Error of a step, relative to its length in the metric it is taken in, at which products in pieces
are given up."""

_PIECES_SAMPLE = 64
"""Rows and columns of the momentum on which that is measured."""


Preconditioned = tuple[float | Tensor, list[nn.Parameter], list[Tensor], int]
"""mᵀ(F + λ)⁻¹m, the parameters with gradients, their steps, and the number of late blocks."""


@dataclasses.dataclass(slots=True, eq=False)
class Span:
    """Where a layer's groups lie in a stack.

    Attributes:
        position: The layer's position in the plan.
        layer: The layer.
        slice: Its entries of the stack.
        momenta: The parts of the momentum that belong to weight and bias; views.
        directions: Likewise of the preconditioned momentum.
        count: How many updates its moving averages have had.
        inverted: Whether its inverses have been computed.
    """

    position: int
    layer: KroneckerLayer
    slice: slice
    momenta: list[Tensor]
    directions: list[Tensor]
    count: int = 0
    inverted: bool = False

    @property
    def active(self) -> bool:
        """Whether the layer has a gradient."""
        return any(p.grad is not None for p in self.layer.tensors)


def spans_of(
    layers: Sequence[tuple[int, KroneckerLayer]], momentum: Tensor, direction: Tensor
) -> list[Span]:
    """Where each layer lies in a stack."""
    spans, start = [], 0
    for position, layer in layers:
        entries = slice(start, start + layer.form.groups)
        start += layer.form.groups
        spans.append(
            Span(position, layer, entries, _parts(layer, momentum[entries]),
                 _parts(layer, direction[entries]))
        )  # fmt: skip
    return spans


def _parts(layer: KroneckerLayer, matrices: Tensor) -> list[Tensor]:
    """A layer's matrices cut into its parameters, shaped like them where views can be."""
    if layer.bias is None and layer.form.bias:
        return [matrices.view(layer.weight.shape)]  # a bias alone
    part = layer.form.weight_part(matrices)
    parts = [part if layer.form.transposed else part.view(layer.weight.shape)]
    if layer.bias is not None:
        parts.append(layer.form.bias_part(matrices).view(layer.bias.shape))
    return parts


def take_gradients(
    spans: Sequence[Span], finite: Tensor | None
) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Add gradients to the momenta; the parameters that have one, and where their steps will be."""
    parameters, directions = [], []
    for span in spans:
        for p, part, direction in zip(
            span.layer.tensors, span.momenta, span.directions, strict=True
        ):
            if p.grad is not None:
                own = kept_gradient(p.grad, finite)
                part.add_(own.reshape(part.shape) if span.layer.form.transposed else own)
                parameters.append(p)
                directions.append(direction)
    return parameters, directions


def like(parameters: Sequence[nn.Parameter], steps: Sequence[Tensor]) -> list[Tensor]:
    """Steps in the shapes of their parameters."""
    return [
        step if step.shape == p.shape else step.reshape(p.shape)
        for p, step in zip(parameters, steps, strict=True)
    ]


def stands_alone(form: LayerForm, device: torch.device) -> bool:
    """Whether a layer is better off in a stack of its own."""
    return (
        form.groups == 1
        and min(form.outputs, form.inputs) > 1
        and form.outputs * form.inputs >= _LEAST_ALONE
        and device.type == "cpu"
    )


@final
class KroneckerStack:
    """Kronecker-factored blocks of equal shape.

    Args:
        layers: Positions in the plan with their layers; equal forms up to the number of groups,
            equal dtype and device.
        group: Index of the parameter group they all belong to.
        product_dtype: Precision in which inverses are kept and multiplied; default: that of the
            momentum, or two bfloat16 pieces for wide layers in float32 on a CPU that multiplies
            such matrices, where that was found to be near enough when the inverses were made.
        method: How factors are inverted.
        precision: Of the averages and of their inversion; default: that of the parameters, but at
            least float32.

    Attributes:
        pieces: 1 where products with an entry's inverses are taken in pieces.
        rows: The rows that the present gradient of a stack of one layer is the product of, where
            they are known; the next step takes them.
        follows: Whether `direction` is the preconditioned momentum and stays so, as a moving
            average of its own, while the inverses do.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, KroneckerLayer]],
        group: int,
        product_dtype: torch.dtype | None = None,
        method: InverseMethod = "cholesky",
        precision: torch.dtype | None = None,
    ) -> None:
        self.group = group
        self.method: InverseMethod = method
        self.form = layers[0][1].form
        self.size = sum(layer.form.groups for _, layer in layers)
        weight = layers[0][1].weight
        dtype = factor_dtype(weight.dtype)
        m, k = self.form.outputs, self.form.inputs

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(self.size, *shape, dtype=dtype, device=weight.device)

        self.factors = KroneckerFactors(
            inputs=zeros(k, k).to(precision or dtype), outputs=zeros(m, m).to(precision or dtype)
        )
        kept = product_dtype or dtype
        self.input_inverses, self.output_inverses = zeros(k, k).to(kept), zeros(m, m).to(kept)
        self.momentum, self.direction = zeros(m, k), zeros(m, k)
        self.spans = spans_of(layers, self.momentum, self.direction)
        self.pieces = zeros()
        self.alone = self.size == 1 and stands_alone(self.form, weight.device)
        self.rows: GradientRows | None = None
        self.follows = False
        self._may_split = (
            product_dtype is None
            and self.alone
            and self.factors.inputs.dtype == torch.float32
            and multiplies_bfloat16()
        )
        self._split: tuple[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    @property
    def cost(self) -> float:
        """Multiplications to invert one of the blocks."""
        return float(self.form.outputs**3 + self.form.inputs**3)

    def update(self, span: Span, sums: FactorSums, weight: float) -> bool:
        """Take new second moments into the moving averages; False if they are not finite."""
        own = self.factors.inputs[span.slice], self.factors.outputs[span.slice]
        if not sums.into(own, past_weight(span.count + 1), weight):
            return False
        span.count += 1
        return True

    def tensors(self) -> dict[str, Tensor]:
        """The stack's tensors by the names they are saved under."""
        return {
            "input_factor": self.factors.inputs,
            "output_factor": self.factors.outputs,
            "input_inverse": self.input_inverses,
            "output_inverse": self.output_inverses,
            "pieces": self.pieces,
            "momentum_buffer": self.momentum,
        }

    def averages(self) -> list[Tensor]:
        """What decays: moving averages and momentum."""
        kept = [self.factors.inputs, self.factors.outputs, self.momentum]
        return [*kept, self.direction] if self.follows else kept

    def fits(self) -> bool:
        """Whether the parameters are still where, and of the kind, the stack was made for."""
        return fits(self.momentum, self.spans[0].layer.weight)

    def precondition(
        self, momentum: float, damping: float, finite: Tensor | None = None
    ) -> Preconditioned:
        """Take gradients into the momentum m and precondition it; resting layers are left alone.

        Args:
            momentum: Share of m that is kept.
            damping: λ; Kronecker-factored blocks have it in their inverses already.
            finite: Whether the gradients are finite, where that is known on the device alone; if
                not the momentum stays as it is.

        Returns:
            mᵀ(F + λ)⁻¹m, on a device a tensor; the parameters that have gradients, with their
            parts of (F + λ)⁻¹m, valid until the next call; and the number of layers that have a
            gradient but no inverse yet.
        """
        del damping
        pieces, active, late = begin(self.spans, self.momentum, kept_share(momentum, finite))
        parameters, directions = take_gradients(active, finite)
        rows, self.rows = self.rows, None
        size = 0.0
        for piece in pieces:
            m, v = self.momentum[piece], self.direction[piece]
            outer, within = self.output_inverses[piece], self.input_inverses[piece]
            split = self._may_split and bool(self.pieces[0])
            exact = not split and within.dtype == m.dtype
            if rows is not None and exact and (self.follows or not momentum):
                rows.add_preconditioned(v[0], outer[0], within[0], momentum)
            elif split:
                left, left_rest, right, right_rest = self._in_pieces()
                v.copy_(_left(left, left_rest, _right(m.bfloat16(), right, right_rest)))
            elif exact:
                torch.bmm(outer, m @ within, out=v)
            else:
                v.copy_(outer @ (m.to(within.dtype) @ within))
            size += inner(m, v)
            self.follows = self.alone and exact and momentum > 0
        return size, parameters, like(parameters, directions), late

    def ready(self) -> list[int]:
        """Entries of the stack that have statistics."""
        return ready_entries(self.spans)

    def renew(self, damping: float, entries: Sequence[int]) -> dict[int, int]:
        """Recompute the inverses of some entries of the stack.

        Returns:
            How each was come by; see `KroneckerInverse.status`. What failed keeps its old inverse.
        """
        own = slice(None) if len(entries) == self.size else list(entries)
        factors = KroneckerFactors(
            inputs=self.factors.inputs[own], outputs=self.factors.outputs[own]
        )
        known = None
        if self.method == "newton-schulz":
            a, b = self.input_inverses[own], self.output_inverses[own]
            known = a.to(factors.inputs.dtype), b.to(factors.outputs.dtype)
        inverse = factors.inverse(damping, self.method, known)
        statuses = inverse.status.tolist()
        good = [i for i, status in enumerate(statuses) if status % REPLACED < 3]
        if len(good) == self.size:
            self.input_inverses.copy_(inverse.inputs)
            self.output_inverses.copy_(inverse.outputs)
        elif good:
            places = [entries[i] for i in good]
            self.input_inverses[places] = inverse.inputs[good].to(self.input_inverses.dtype)
            self.output_inverses[places] = inverse.outputs[good].to(self.input_inverses.dtype)
        if self._may_split and good:
            self.pieces.fill_(float(self._error(damping) <= _PIECES_ERROR))
        return dict(zip(entries, statuses, strict=True))

    def unread_inverses(self, damping: float) -> tuple[KroneckerFactors, Tensor]:
        """New inverses of A and B and whether each entry's are good, without reading a number."""
        balance, root = self.factors.balance(damping), math.sqrt(damping)
        a, first = unread_inverse(self.factors.inputs, balance * root)
        b, second = unread_inverse(self.factors.outputs, root / balance)
        return KroneckerFactors(inputs=a, outputs=b), first & second

    def take_over(self, inverses: KroneckerFactors, good: Tensor) -> None:
        """Replace inverses where there are good ones; where not, the old ones stay."""
        chosen = good.view(-1, 1, 1)
        for own, new in (
            (self.input_inverses, inverses.inputs), (self.output_inverses, inverses.outputs)
        ):  # fmt: skip
            own.copy_(torch.where(chosen, new.to(own.dtype), own))
        self.settle(dict.fromkeys(range(self.size), 0))

    def settle(self, statuses: dict[int, int]) -> Inversions:
        """Note which layers have inverses now; see `settled`."""
        self.follows = False
        return settled(self.spans, statuses)

    def shared(self) -> list[Tensor]:
        """What one process computes for all, entry by entry."""
        tensors = [self.input_inverses, self.output_inverses]
        return [*tensors, self.pieces] if self.pieces.dtype == tensors[0].dtype else tensors

    def _in_pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inverses of B and A, each a sum of two bfloat16 matrices, made anew if they changed."""
        versions = self.output_inverses._version, self.input_inverses._version
        if self._split is None or self._split[0] != versions:
            halves = (*_halves(self.output_inverses), *_halves(self.input_inverses))
            self._split = versions, halves
        return self._split[1]

    def _error(self, damping: float) -> float:
        """What products in pieces do to a step, relative to it in the norm (F + λ).

        Measured for either factor on some rows, and some columns, of the present momentum, which
        tells it up to a factor of about two; infinite where there is no momentum yet.
        """
        m, outer, within = self.momentum, self.output_inverses, self.input_inverses
        left, left_rest, right, right_rest = self._in_pieces()
        balance, root = self.factors.balance(damping), math.sqrt(damping)
        rows = m[:, :: -(-m.shape[1] // _PIECES_SAMPLE)].contiguous()
        exact = rows @ within
        wrong = _right(rows.bfloat16(), right, right_rest).float() - exact
        loss = (wrong * (wrong @ self.factors.inputs + balance * root * wrong)).sum()
        first = loss / (exact * rows).sum()
        columns = m @ within[:, :, :: -(-m.shape[2] // _PIECES_SAMPLE)]
        exact = outer @ columns
        wrong = _left(left, left_rest, columns.bfloat16()).float() - exact
        loss = (wrong * (self.factors.outputs @ wrong + root / balance * wrong)).sum()
        error = float((first + loss / (exact * columns).sum()).sqrt())
        return error if math.isfinite(error) else math.inf


def _halves(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """A sum of two bfloat16 matrices that is float32's but for a relative 2⁻¹⁷."""
    large = matrices.bfloat16()
    return large, (matrices - large).bfloat16()


def _right(m: Tensor, large: Tensor, rest: Tensor) -> Tensor:
    """m (large + rest)."""
    return torch.baddbmm(torch.bmm(m, large), m, rest)


def _left(large: Tensor, rest: Tensor, m: Tensor) -> Tensor:
    """(large + rest) m."""
    return torch.baddbmm(torch.bmm(large, m), rest, m)


def fits(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a block's memory is where, and of the kind, its parameter wants it."""
    return tensor.device == weight.device and tensor.dtype == factor_dtype(weight.dtype)


def begin(
    spans: Sequence[Span], momenta: Tensor, momentum: float | Tensor
) -> tuple[list[slice], list[Span], int]:
    """Decay the momenta of the layers that take part in a step.

    Returns:
        The pieces of the stack that take part, the layers in them, and how many are late.
    """
    present = [span for span in spans if span.active]
    active = [span for span in present if span.inverted]
    # One product for the whole stack, or one for each layer that takes part.
    pieces = [slice(None)] if len(active) == len(spans) else [span.slice for span in active]
    for piece in pieces:
        momenta[piece].mul_(momentum)
    return pieces, active, len(present) - len(active)


def ready_entries(spans: Sequence[Span]) -> list[int]:
    """Entries of a stack that have statistics."""
    return [i for span in spans if span.count for i in range(span.slice.start, span.slice.stop)]


def settled(spans: Sequence[Span], statuses: dict[int, int]) -> Inversions:
    """Note which layers have inverses now, and count how they were come by."""
    total = Inversions()
    for span in spans:
        entries = range(span.slice.start, span.slice.stop)
        own = [statuses[i] for i in entries if i in statuses]
        if own:
            found = Inversions.of(*own)
            span.inverted |= not found.failed
            total += found
    return total


def saved_span(span: Span, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What is to be saved of a layer; tensors are views."""
    return {
        "updates": span.count,
        "inverted": span.inverted,
        **{name: tensor[span.slice] for name, tensor in tensors.items()},
    }
