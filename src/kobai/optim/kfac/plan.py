"""The plan of curvature blocks is made once from the module tree, and shown.

Every trainable parameter gets a block: a Kronecker-factored one where a layer multiplies by it, a
block per unit for scale and shift of normalisations, a diagonal one with the reason elsewhere.
Nothing is left out.
"""

import dataclasses
from collections.abc import Collection

from torch import nn

from kobai.curvature.coverage import Coverage, Covered
from kobai.layers import LayerForm
from kobai.problem.plan import ParameterGroup, group_parameters


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerLayer:
    """Parameters that form one Kronecker-factored block.

    Attributes:
        name: Name of the (first) module.
        modules: Name and module of every layer that uses these parameters.
        slots: For each of them, which of its matrices.
        form: How weight and bias form matrices.
        weight: The weight; of a bias alone, that bias.
        bias: The bias, or None.
        parameters: Names of weight and bias.
        reason: Kind of layer.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]
    slots: tuple[str, ...]
    form: LayerForm
    weight: nn.Parameter
    bias: nn.Parameter | None
    parameters: tuple[str, ...]
    reason: str

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """Weight and, if there is one, bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnitLayer:
    """Scale and shift of a normalisation: one small block for each unit.

    Attributes:
        name: Path of the module.
        module: The module.
        attributes: "weight", "bias" or both, in this order.
        tensors: These parameters.
        parameters: Their names in the model.
        reason: Kind of layer.
    """

    name: str
    module: nn.Module
    attributes: tuple[str, ...]
    tensors: tuple[nn.Parameter, ...]
    parameters: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalParameter:
    """A parameter with a diagonal block.

    Attributes:
        name: Its name.
        parameter: The parameter.
        reason: Why it has no Kronecker-factored block.
    """

    name: str
    parameter: nn.Parameter
    reason: str

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """The parameter."""
        return (self.parameter,)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)


PlanEntry = KroneckerLayer | UnitLayer | DiagonalParameter
"""An entry of a plan, which has a block of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A block for every trainable parameter of a model.

    Attributes:
        layers: Kronecker-factored blocks.
        units: Blocks of normalisations.
        diagonals: The remaining parameters.
    """

    layers: tuple[KroneckerLayer, ...]
    units: tuple[UnitLayer, ...]
    diagonals: tuple[DiagonalParameter, ...]

    @property
    def entries(self) -> "tuple[PlanEntry, ...]":
        """All of them; positions in the plan count in this order."""
        return (*self.layers, *self.units, *self.diagonals)

    def table(self, structure: str = "kronecker") -> Coverage:
        """Return the coverage, one line per block.

        Args:
            structure: Fisher structure of the layers.
        """
        return Coverage(_line(entry, structure) for entry in self.entries)


def block_kind(entry: PlanEntry, structure: str) -> str:
    """Name the kind of block that an entry of a plan has under a structure."""
    if isinstance(entry, DiagonalParameter) or structure == "diagonal":
        return "diagonal"
    if isinstance(entry, UnitLayer):
        return "layer" if structure == "layer" else "unit"
    # The lines of a table have no units: each of its entries is taken by itself there.
    return "diagonal" if structure == "unit" and entry.form.lookup else structure


def _line(entry: PlanEntry, structure: str) -> Covered:
    kind = block_kind(entry, structure)
    if isinstance(entry, UnitLayer):
        groups, m, k = 1, entry.tensors[0].numel(), len(entry.tensors)
    elif isinstance(entry, DiagonalParameter):
        groups, m, k = 1, 1, entry.parameter.numel()
    else:
        groups, m, k = entry.form.groups, entry.form.outputs, entry.form.inputs
    count = groups * m * k
    if kind == "diagonal":
        shape, numbers, refresh = str(count), 3 * count, 0
    elif kind == "unit":
        units = groups * m
        # Systems of one or two unknowns are solved without an inverse.
        numbers = units * k * ((2 * k if k > 2 else k) + 2)
        shape, refresh = f"{units} of {k}×{k}", units * k**3
    elif kind == "layer":
        shape, numbers, refresh = f"{count}×{count}", 2 * count * (count + 1), count**3
    else:
        eigen = kind == "ekfac"
        # An eigendecomposition takes about ten times the multiplications of an inverse.
        dearer = 10 if eigen else 1
        if isinstance(entry, KroneckerLayer) and entry.form.lookup:
            # The inputs' factor is diagonal: their inverse is a division.
            shape = f"{m}×{m} ⊗ diagonal {k}"
            numbers, refresh = 2 * m * m + k + (3 if eigen else 2) * m * k, dearer * m**3
        else:
            shape = (f"{groups} × " if groups > 1 else "") + f"{m}×{m} ⊗ {k}×{k}"
            numbers = groups * (2 * m * m + 2 * k * k + (3 if eigen else 2) * m * k)
            refresh = groups * (m**3 + k**3) * dearer
    return Covered(
        parameters=entry.parameters,
        block=kind,
        size=shape,
        numbers=numbers,
        solve=refresh,
        reason=entry.reason,
    )


def plan_blocks(
    model: nn.Module,
    parameters: Collection[nn.Parameter] | None = None,
    demoted: Collection[str] = (),
) -> Plan:
    """Give every parameter its block.

    Args:
        model: The model.
        parameters: Which of its parameters; default: those that are trainable now.
        demoted: Names of parameters that are used without their module being called.

    Raises:
        TypeError: If it is given parameters in place of a module.
        ValueError: If nothing is trainable, or a lazy module has not seen its first input yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"give the model itself, not its parameters: got {type(model).__name__}; "
            "KFAC(model, …) watches its layers"
        )
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"{path or '(root)'} ({type(module).__name__}) has no parameters yet; "
                    "run the model once on an input before making the optimizer"
                )
    own = dict(model.named_parameters())
    if parameters is None:
        names = [name for name, p in own.items() if p.requires_grad]
    else:
        chosen = {id(p) for p in parameters}
        names = [name for name, p in own.items() if id(p) in chosen]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters; "
            "set requires_grad=True on those to be learned"
        )
    layers: list[KroneckerLayer] = []
    units: list[UnitLayer] = []
    diagonals: list[DiagonalParameter] = []
    reasons = dict.fromkeys(demoted, "used without its module being called")
    for group in group_parameters(model, names, reasons):
        tensors = tuple(own[name] for name in group.parameters)
        if group.form is not None and not _rescaled(group):
            layers.append(
                KroneckerLayer(
                    name=group.modules[0][0],
                    modules=group.modules,
                    slots=group.slots,
                    form=group.form,
                    weight=tensors[0],
                    bias=tensors[1] if len(tensors) > 1 else None,
                    parameters=group.parameters,
                    reason=group.reason,
                )
            )
        elif group.kind == "scale":
            path, module = group.modules[0]
            attributes = tuple(name.rpartition(".")[2] for name in group.parameters)
            units.append(
                UnitLayer(
                    name=path,
                    module=module,
                    attributes=attributes,
                    tensors=tensors,
                    parameters=group.parameters,
                    reason=group.reason,
                )
            )
        else:
            diagonals += [
                DiagonalParameter(name=name, parameter=p, reason=group.reason)
                for name, p in zip(group.parameters, tensors, strict=True)
            ]
    return Plan(layers=tuple(layers), units=tuple(units), diagonals=tuple(diagonals))


def _rescaled(group: ParameterGroup) -> bool:
    """Whether a table passes on gradients divided by how often a line was looked up."""
    return any(getattr(module, "scale_grad_by_freq", False) for _, module in group.modules)
