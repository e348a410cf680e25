"""K-FAC written out the slow way: Jacobians by autograd, P×P matrices, no hooks of kobai's.

Also two ways of looking at kobai's own: what an optimizer saves of every parameter, by name, and an
observer of a model's passes, which shows what they are summed up to.
"""

import torch
from torch import nn
from torch.func import functional_call

from kobai.optim.kfac import KFACSettings
from kobai.optim.kfac.observe import Observer
from kobai.optim.kfac.plan import plan_blocks
from kobai.optim.kfac.preconditioner import Preconditioner
from kobai.optim.kfac.statistics import Statistics
from kobai.problem import Categorical, as_likelihood, call_arguments, output_tensor


def saved(optimizer):
    """What `state_dict` holds of each parameter that a block begins with, by the name of it."""
    names = {id(p): name for name, p in optimizer.model.named_parameters()}
    own = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()["state"]
    return {
        name: {key: value for key, value in state[i].items() if not isinstance(value, dict)}
        for i, name in enumerate(own)
        if "updates" in state.get(i, {})
    }


def blocks_of(model, **settings):
    """The blocks of a model under K-FAC's settings, without an optimizer."""
    group_of = {id(p): 0 for p in model.parameters()}
    return Preconditioner(plan_blocks(model), group_of, KFACSettings.of(**settings))


def observer(model, likelihood="categorical", generator=None, bases=None, **settings):
    """An observer of a model's passes that gathers what K-FAC with these settings would.

    ``take().sums`` has the sums by position in ``statistics.plan.entries``. `bases` are what second
    moments are taken in, by position; default: those of fresh blocks.
    """
    blocks = blocks_of(model, **settings)
    if bases is not None:
        blocks.bases = lambda: bases
    statistics = Statistics(
        as_likelihood(likelihood),
        KFACSettings.of(**settings),
        blocks.plan,
        torch.Generator().manual_seed(0) if generator is None else generator,
        lambda: blocks,
    )
    return Observer(model, statistics, None)


def _channels_last(tensor, module):
    """(N, …, M): channels moved last, places in between flattened to one axis."""
    if isinstance(module, nn.Conv2d):
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def input_rows(module, inputs, bias=True):
    """What multiplies the weight's rows, (G, N·T, K): derivatives of outputs in the weight."""
    groups = getattr(module, "groups", 1)
    per = module.weight.shape[0] // groups

    def outputs(weight):
        parameters = {"weight": weight}
        if module.bias is not None:
            parameters["bias"] = module.bias.detach()
        out = functional_call(module, parameters, (inputs,))
        # The first output of each group sees exactly the group's inputs.
        return _channels_last(out, module)[:, :, ::per].sum(2)

    jacobian = torch.autograd.functional.jacobian(outputs, module.weight.detach())
    rows = torch.stack([jacobian[:, :, g * per].flatten(0, 1).flatten(1) for g in range(groups)])
    if bias and module.bias is not None:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
    return rows


def output_jacobian(model, module, batch):
    """d outputs / d this layer's output, (N, outputs, T, M), and the layer's input."""
    args, kwargs = call_arguments(batch)
    seen = {}

    def note(_, arguments, out):
        seen["inputs"], seen["shape"] = arguments[0].detach(), out.shape

    handle = module.register_forward_hook(note)
    outputs = output_tensor(model(*args, **kwargs)).detach()
    handle.remove()

    def shifted(epsilon):
        handle = module.register_forward_hook(lambda _, arguments, out: out + epsilon)
        try:
            return output_tensor(model(*args, **kwargs)).flatten(1)
        finally:
            handle.remove()

    jacobian = torch.autograd.functional.jacobian(
        shifted, torch.zeros(seen["shape"], dtype=outputs.dtype)
    )
    own = torch.stack([jacobian[n, :, n] for n in range(outputs.shape[0])])
    n, c = own.shape[:2]
    own = _channels_last(own.flatten(0, 1), module).reshape(n, c, -1, module.weight.shape[0])
    return own, seen["inputs"], outputs


def output_hessians(likelihood, outputs, targets, damping=0.0):
    """Hessian of each example's loss in its outputs plus output damping, (N, C', C')."""
    flat = outputs.flatten(1)
    columns = []
    for k in range(flat.shape[1]):
        unit = torch.zeros_like(flat)
        unit[:, k] = 1
        unit = unit.view_as(outputs)
        column = likelihood.hvp(outputs, targets, unit)
        if isinstance(likelihood, Categorical):
            # Shifting all logits of a term changes nothing; ignored terms do not count at all.
            unit = unit - unit.mean(likelihood.axis, keepdim=True)
            unit = unit * (targets != likelihood.ignore_index).unsqueeze(likelihood.axis)
        columns.append((column + damping * likelihood.scale * unit).flatten(1))
    return torch.stack(columns, 2)


def factors(model, module, batch, likelihood, bias=True, damping=0.0, sharing="expand"):
    """A (G, K, K) and B (G, M, M) of one layer over one batch."""
    jacobian, inputs, outputs = output_jacobian(model, module, batch)
    hessians = output_hessians(likelihood, outputs, batch.targets, damping)
    groups = getattr(module, "groups", 1)
    rows = input_rows(module, inputs, bias)
    a = rows.mT @ rows / rows.shape[1]
    moment = torch.einsum("nctm,ncd,ndtk->mk", jacobian, hessians, jacobian)
    moment = moment / likelihood.weight(batch.targets)
    m = moment.shape[0] // groups
    b = torch.stack([moment[g * m : g * m + m, g * m : g * m + m] for g in range(groups)])
    if sharing == "trace" and jacobian.shape[2] > 1:
        n, _, t, _ = jacobian.shape
        for g in range(groups):
            # Derivatives of outputs in the weights of a group, example by example.
            own = jacobian[..., g * m : g * m + m]
            full = torch.einsum("nctm,ntk->ncmk", own, rows[g].view(n, t, -1)).flatten(2)
            trace = torch.einsum("ncp,ncd,ndp->", full, hessians, full)
            trace = trace / likelihood.weight(batch.targets)
            b[g] *= trace / (a[g].trace() * b[g].trace())
    return a, b


def damped_block(a, b, damping):
    """(B + √λ/π) ⊗ (A + π√λ) of one group, MK × MK, by Martens and Grosse's formula."""
    pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
    root = damping**0.5
    return torch.kron(
        b + root / pi * torch.eye(len(b), dtype=b.dtype),
        a + pi * root * torch.eye(len(a), dtype=a.dtype),
    )


def dense_fisher(objective):
    """The exact Fisher matrix of an objective, P×P, over its batches."""
    theta = objective.theta()
    total = 0
    for batch in objective.batches:
        jacobian = torch.autograd.functional.jacobian(
            lambda t, batch=batch: objective.forward(t, batch).flatten(1), theta
        )
        outputs = objective.forward(theta, batch).detach()
        hessians = output_hessians(objective.likelihood, outputs, batch.targets)
        total = total + torch.einsum("ncp,ncd,ndq->pq", jacobian, hessians, jacobian)
    return total / objective.weight
