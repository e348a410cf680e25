"""The table of likelihoods: from what people pass (a name, a torch loss module) to a likelihood."""

from collections.abc import Callable
from typing import Any

from torch import nn

from kobai.problem.likelihoods.bernoulli import Bernoulli
from kobai.problem.likelihoods.categorical import Categorical
from kobai.problem.likelihoods.gaussian import Gaussian
from kobai.problem.likelihoods.likelihood import Likelihood

_FAMILIES: dict[str, Callable[[], Likelihood]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}
_OWN = frozenset(_FAMILIES)
_TORCH_LOSSES: dict[type[nn.Module], Callable[[Any], Likelihood]] = {
    nn.CrossEntropyLoss: Categorical.from_torch,
    nn.BCEWithLogitsLoss: Bernoulli.from_torch,
    nn.MSELoss: Gaussian.from_torch,
}


def register_likelihood(
    name: str,
    family: Callable[[], Likelihood],
    *,
    torch_loss: type[nn.Module] | None = None,
) -> None:
    """Make a family of one's own known by a name, wherever kobai takes a likelihood.

    Args:
        name: The name; it may replace one registered before, but none of kobai's own.
        family: A subclass of `Likelihood`, or a function without arguments that makes one.
        torch_loss: A class of loss modules that mean this family. The family must then have a class
            method ``from_torch(loss)`` that turns such a module, with its options, into a
            likelihood or raises a `ValueError` that names the option it does not know.

    Raises:
        ValueError: If the name is one of kobai's own.
        TypeError: If the family has no ``from_torch`` where one is needed.

    Example:
        >>> from kobai.problem import Gaussian, as_likelihood, register_likelihood
        >>> register_likelihood("precise", lambda: Gaussian(scale=100.0))
        >>> as_likelihood("precise").scale
        100.0
    """
    if name in _OWN:
        raise ValueError(f"{name!r} is the name of a likelihood of kobai's own; take another")
    if torch_loss is not None:
        convert = getattr(family, "from_torch", None)
        if convert is None:
            raise TypeError(
                f"{name} has no class method from_torch(loss), which turns a "
                f"{torch_loss.__name__} into a likelihood; define it"
            )
        _TORCH_LOSSES.pop(torch_loss, None)
        _TORCH_LOSSES[torch_loss] = convert
    _FAMILIES[name] = family


def as_likelihood(likelihood: "str | Likelihood | nn.Module") -> Likelihood:
    """Turn a name, a likelihood or a torch loss module into a likelihood.

    Torch's loss modules keep their scale: ``CrossEntropyLoss`` averages over positions that are not
    ignored, ``BCEWithLogitsLoss`` over single outputs, and ``MSELoss`` is the mean over single
    outputs of (f − y)², which is 2/C times ½‖f − y‖² per example: ``Gaussian(scale=2,
    reduction="terms")``.

    Args:
        likelihood: "categorical", "bernoulli", "gaussian", a name given to `register_likelihood`, a
            `Likelihood`, or one of those modules.

    Raises:
        ValueError: If the name is unknown or the loss module has options without a likelihood
            (class weights, ``pos_weight``, a reduction other than "mean").
        TypeError: If it is something else.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str):
        if likelihood not in _FAMILIES:
            raise ValueError(
                f"unknown likelihood {likelihood!r}; choose from {sorted(_FAMILIES)}, or make your "
                "own known by register_likelihood"
            )
        return _FAMILIES[likelihood]()
    # The latest first, so that a subclass registered later goes before its base class.
    for kind, convert in reversed(_TORCH_LOSSES.items()):
        if isinstance(likelihood, kind):
            return convert(likelihood)
    losses = ", ".join(f"nn.{kind.__name__}" for kind in _TORCH_LOSSES)
    raise TypeError(
        f"a likelihood is a name, a kobai likelihood or one of the loss modules {losses}; got "
        f"{type(likelihood).__name__}"
    )
