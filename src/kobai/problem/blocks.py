"""Named blocks of a parameter vector: which coordinates belong to a parameter, layer, unit, filter.

Layers store what feeds one unit along different axes, and some spread it over several matrices:
`kobai.layers` knows where it lies.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from kobai.layers import is_kind, layout_of, units_of

BlockKind = Literal["parameter", "layer", "unit", "filter"]


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
                if len(shapes[name]) > 1 and not is_kind(_owner(module, name), "norm")
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
    kind = layout_of(_owner(module, name))
    families = None if kind is None else kind.unit_families
    match = None if families is None else families.fullmatch(name.rpartition(".")[2])
    return "" if match is None else match[1]


def _rows(module: nn.Module, name: str, shape: torch.Size) -> Tensor:
    """Positions within a parameter by unit, shape (units, entries of a unit)."""
    owner, positions = _owner(module, name), torch.arange(shape.numel())
    if not shape:
        return positions.view(1, 1)
    return units_of(owner, positions.view(shape))


def _block(name: str, spans: list[Tensor], parameters: list[str]) -> Block:
    return Block(name=name, indices=torch.cat(spans), parameters=tuple(parameters))


def _units(name: str, rows: list[Tensor], parameters: list[str]) -> list[Block]:
    """One block per row of the given index matrices, all of which have as many rows."""
    indices = torch.cat(rows, dim=1)
    return [
        Block(name=f"{name}[{i}]", indices=row, parameters=tuple(parameters))
        for i, row in enumerate(indices)
    ]
