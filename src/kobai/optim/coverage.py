"""Which parameter gets which curvature block: decided once from the module tree, and shown.

Every trainable parameter gets a block: weights of Linear and Conv2d layers (with their biases) a
Kronecker-factored one, everything else a diagonal one with the reason. Nothing is left out.
"""

import dataclasses
from collections.abc import Collection, Sequence

from torch import nn

from kobai.curvature.kronecker import LayerForm, layer_form


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
    """One line of the table that `print(optimizer)` shows.

    Attributes:
        parameters: Names of the parameters the block covers.
        block: "kronecker" or "diagonal".
        shape: Sizes of the matrices, such as "10×10 ⊗ 513×513".
        numbers: Floating-point numbers kept for the block: factors, inverses, momentum, step.
        refresh: Multiplications of one inversion, about K³ + M³.
        reason: Why this kind of block.
    """

    parameters: tuple[str, ...]
    block: str
    shape: str
    numbers: int
    refresh: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerLayer:
    """Parameters that form one Kronecker-factored block.

    Attributes:
        name: Name of the (first) module.
        modules: Name and module of every layer that uses these parameters.
        form: How weight and bias form matrices.
        weight: The weight.
        bias: The bias, or None.
        parameters: Names of weight and bias.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]
    form: LayerForm
    weight: nn.Parameter
    bias: nn.Parameter | None
    parameters: tuple[str, ...]

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """Weight and, if there is one, bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A block for every trainable parameter of a model.

    Attributes:
        layers: Kronecker-factored blocks.
        diagonals: The remaining parameters.
    """

    layers: tuple[KroneckerLayer, ...]
    diagonals: tuple[DiagonalParameter, ...]

    def table(self) -> tuple[Coverage, ...]:
        """The coverage, one line a block."""
        rows = []
        for layer in self.layers:
            form = layer.form
            m, k, groups = form.outputs, form.inputs, form.groups
            note = f"{type(layer.modules[0][1]).__name__}"
            if len(layer.modules) > 1:
                note += f", shared by {', '.join(name for name, _ in layer.modules)}"
            rows.append(
                Coverage(
                    parameters=layer.parameters,
                    block="kronecker",
                    shape=(f"{groups} × " if groups > 1 else "") + f"{m}×{m} ⊗ {k}×{k}",
                    numbers=groups * (2 * m * m + 2 * k * k + 2 * m * k),
                    refresh=groups * (m**3 + k**3),
                    reason=note,
                )
            )
        for entry in self.diagonals:
            count = entry.parameter.numel()
            rows.append(
                Coverage(
                    parameters=(entry.name,),
                    block="diagonal",
                    shape=str(count),
                    numbers=2 * count,
                    refresh=0,
                    reason=entry.reason,
                )
            )
        return tuple(rows)


def plan_blocks(
    model: nn.Module,
    parameters: Collection[nn.Parameter] | None = None,
    demoted: Collection[str] = (),
) -> Plan:
    """Give every parameter its block.

    Args:
        model: The model.
        parameters: Which of its parameters; default: those that are trainable now.
        demoted: Names of weights that are used without their module being called.

    Raises:
        ValueError: If nothing is trainable, or a lazy module has not seen its first input yet.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    users: dict[int, list[tuple[str, nn.Module, str]]] = {}
    opaque: set[nn.Module] = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            # Its output projection is used through a fused function and never called.
            opaque.update(part for part in module.modules() if part is not module)
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"{path or '(root)'} ({type(module).__name__}) has no parameters yet; "
                    "run the model once on an input before making the optimizer"
                )
            users.setdefault(id(parameter), []).append((path, module, attribute))
    chosen = {
        id(p) for p in model.parameters() if (p.requires_grad if parameters is None else True)
    }
    if parameters is not None:
        chosen &= {id(p) for p in parameters}
    trainable = [p for p in model.parameters() if id(p) in chosen]
    if not trainable:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters; "
            "set requires_grad=True on those to be learned"
        )
    layers: list[KroneckerLayer] = []
    reasons: dict[int, str] = {}
    covered: set[int] = set()
    for parameter in trainable:
        uses = users[id(parameter)]
        reason = _obstacle(uses, opaque)
        if reason is not None:
            reasons[id(parameter)] = reason
            continue
        if uses[0][2] == "bias":
            continue
        if names[id(parameter)] in demoted:
            reasons[id(parameter)] = "used without its module being called"
            continue
        layer = _kronecker_layer(parameter, uses, users, names, chosen)
        if layer is None:
            reasons[id(parameter)] = "shared by layers of different form"
            continue
        layers.append(layer)
        covered |= {id(parameter)} | ({id(layer.bias)} if layer.bias is not None else set())
    diagonals = tuple(
        DiagonalParameter(
            name=names[id(p)],
            parameter=p,
            reason=reasons.get(id(p), "bias whose weight has no Kronecker block with it"),
        )
        for p in trainable
        if id(p) not in covered
    )
    return Plan(layers=tuple(layers), diagonals=diagonals)


def _obstacle(uses: Sequence[tuple[str, nn.Module, str]], opaque: set[nn.Module]) -> str | None:
    """Why a parameter cannot be part of a Kronecker block, or None."""
    for _, module, attribute in uses:
        kind = type(module).__name__
        if module in opaque:
            return f"{kind} inside MultiheadAttention, which does not call it"
        if layer_form(module) is None or attribute not in ("weight", "bias"):
            return f"{attribute} of {kind}"
    if len({attribute for _, _, attribute in uses}) > 1:
        return "weight and bias at once"
    return None


def _kronecker_layer(
    weight: nn.Parameter,
    uses: Sequence[tuple[str, nn.Module, str]],
    users: dict[int, list[tuple[str, nn.Module, str]]],
    names: dict[int, str],
    chosen: set[int],
) -> KroneckerLayer | None:
    """The block of a weight with all layers that use it, or None if their forms differ."""
    modules = tuple((path, module) for path, module, _ in uses)
    biases = [module._parameters.get("bias") for _, module in modules]
    bias = biases[0]
    together = (
        bias is not None
        and all(other is bias for other in biases)
        and id(bias) in chosen
        and {id(module) for _, module, _ in users[id(bias)]} == {id(m) for _, m in modules}
    )
    forms = {layer_form(module, bias=together) for _, module in modules}
    form = forms.pop()
    if forms or form is None or len({type(module) for _, module in modules}) > 1:
        return None
    bias = bias if together else None
    return KroneckerLayer(
        name=modules[0][0],
        modules=modules,
        form=form,
        weight=weight,
        bias=bias,
        parameters=(names[id(weight)],) + ((names[id(bias)],) if bias is not None else ()),
    )
