"""Nesterov's momentum for blocks that keep a heavy ball.

With m ← μm + g, Nesterov's step goes along g + μm, where the heavy ball's goes along m: torch's
form of it. A block takes gradients into the momentum it keeps and preconditions that in one go. It
is given a share of momentum by which it arrives at (g + μm)/(1 + μ) instead, and what that left out
of the momentum is put back afterwards: no further memory, no further product.

Source: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning
(§2); Bengio et al. 2012, Advances in optimizing recurrent networks (§3.5, the step in terms of the
momentum kept).
"""

from torch import Tensor

from kobai.optim.blocks import Block
from kobai.optim.eigen_stack import EigenStack
from kobai.optim.kronecker_stack import KroneckerStack, Preconditioned


def precondition(
    block: Block, momentum: float, damping: float, nesterov: bool, finite: Tensor | None = None
) -> Preconditioned:
    """Take gradients into a block's momentum m, and precondition m, or g + momentum · m.

    Args:
        block: The block; layers without gradient or inverse are left alone.
        momentum: Share μ of m that is kept.
        damping: λ.
        nesterov: Whether to look ahead.
        finite: See `KroneckerStack.precondition`; not beside `nesterov`.

    Returns:
        See `KroneckerStack.precondition`, of what was preconditioned.
    """
    if not (nesterov and momentum):
        return block.precondition(momentum, damping, finite)
    before, ahead = block.momentum.clone(), 1 + momentum
    size, parameters, directions, late = block.precondition(momentum**2 / ahead, damping)
    if isinstance(block, KroneckerStack):
        block.follows = False  # what was preconditioned is not the momentum that is kept
    if isinstance(block, KroneckerStack | EigenStack):
        moved = [span.slice for span in block.spans if span.active and span.inverted]
    else:
        moved = [slice(None)] if parameters else []
    for part in moved:
        block.momentum[part].add_(before[part], alpha=momentum / ahead)
    return size * ahead**2, parameters, [step.mul_(ahead) for step in directions], late
