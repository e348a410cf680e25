"""Named blocks of a parameter vector: which coordinates belong to a parameter, layer, unit, filter.

Torch stores what feeds one unit along different axes and splits some layers over several matrices;
what is known about its layers is written down here once.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

BlockKind = Literal["parameter", "layer", "unit", "filter"]

_RECURRENT = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)(_l\d+(?:_reverse)?)")
_SCALE_AND_SHIFT = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A named set of coordinates of θ.

    Attributes:
        name: Such as "0.weight" (parameter), "0" (layer), "0[3]" (unit or filter 3 of layer 0).
        indices: Positions in θ, int64, shape (size,), on the CPU.
        parameters: Names of the parameters it draws from.
    """

    name: str
    indices: Tensor
    parameters: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return int(self.indices.numel())


def split_blocks(
    module: nn.Module, shapes: Mapping[str, torch.Size], by: BlockKind
) -> tuple[Block, ...]:
    """Split a parameter vector into blocks; see `ParameterSpace.blocks`.

    Args:
        module: Holds the parameters.
        shapes: Shape of every parameter by name, in the order of the vector.
        by: Which blocks.

    Raises:
        ValueError: If `by` is not one of the four kinds.
    """
    spans: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        spans[name] = torch.arange(start, start + shape.numel())
        start += shape.numel()
    if by == "parameter":
        return tuple(_block(name, [span], [name]) for name, span in spans.items())
    if by == "filter":
        return tuple(
            block
            for name, span in spans.items()
            for block in (
                _units(name, [span[_rows(module, name, shapes[name])]], [name])
                if len(shapes[name]) > 1 and not isinstance(_owner(module, name), _SCALE_AND_SHIFT)
                else (_block(name, [span], [name]),)
            )
        )
    layers: dict[str, list[str]] = {}
    for name in shapes:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    if by == "layer":
        return tuple(
            _block(layer or "(root)", [spans[name] for name in names], names)
            for layer, names in layers.items()
        )
    if by == "unit":
        blocks: list[Block] = []
        for layer, names in layers.items():
            groups: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
            for name in names:
                rows = _rows(module, name, shapes[name])
                key = (_family(module, name), len(rows))
                groups.setdefault(key, []).append((name, spans[name][rows]))
            for group in groups.values():
                label = layer if len(groups) == 1 else group[0][0]
                blocks += _units(label or "(root)", [r for _, r in group], [n for n, _ in group])
        return tuple(blocks)
    raise ValueError(f"blocks by 'parameter', 'layer', 'unit' or 'filter', got {by!r}")


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def _family(module: nn.Module, name: str) -> str:
    """Tells apart parameters of one layer that have as many rows but feed different units.

    Elsewhere parameters of a layer with the same number of rows describe the same units; gates of
    recurrent layers stack their units, so their rows agree as well.
    """
    owner, short = _owner(module, name), name.rpartition(".")[2]
    if isinstance(owner, nn.RNNBase) and (match := _RECURRENT.fullmatch(short)):
        return match[1]
    if isinstance(owner, nn.MultiheadAttention) and short.startswith(("q_", "k_", "v_", "bias_")):
        return short
    return ""


def _rows(module: nn.Module, name: str, shape: torch.Size) -> Tensor:
    """Positions within a parameter by unit, shape (units, entries of a unit)."""
    owner, every = _owner(module, name), torch.arange(shape.numel())
    if not shape:
        return every.view(1, 1)
    if isinstance(owner, _SCALE_AND_SHIFT):
        return every.view(-1, 1)
    if isinstance(owner, nn.modules.conv._ConvTransposeNd) and len(shape) > 1:
        # Stored as (inputs, outputs / groups, …): an output channel is a column of its group.
        inputs = shape[0] // owner.groups
        columns = every.view(owner.groups, inputs, shape[1], -1).transpose(1, 2)
        return columns.reshape(owner.groups * shape[1], -1)
    return every.view(shape[0], shape[1:].numel())


def _block(name: str, spans: list[Tensor], parameters: list[str]) -> Block:
    return Block(name=name, indices=torch.cat(spans), parameters=tuple(parameters))


def _units(name: str, rows: list[Tensor], parameters: list[str]) -> list[Block]:
    """One block per row of the given index matrices, all of which have as many rows."""
    indices = torch.cat(rows, dim=1)
    return [
        Block(name=f"{name}[{i}]", indices=row, parameters=tuple(parameters))
        for i, row in enumerate(indices)
    ]
