"""From what people pass (a name, a torch loss module) to a likelihood."""

from torch import nn

from kobai.problem.likelihoods.categorical import Categorical
from kobai.problem.likelihoods.bernoulli import Bernoulli, Gaussian
from kobai.problem.likelihoods.likelihood import Likelihood

_NAMES = {"categorical": Categorical, "bernoulli": Bernoulli, "gaussian": Gaussian}


def as_likelihood(likelihood: "str | Likelihood | nn.Module") -> Likelihood:
    """Turn a name, a likelihood or a torch loss module into a likelihood.

    Torch's loss modules keep their scale: ``CrossEntropyLoss`` averages over positions that are not
    ignored, ``BCEWithLogitsLoss`` over single outputs, and ``MSELoss`` is the mean over single
    outputs of (f − y)², which is 2/C times ½‖f − y‖² an example: ``Gaussian(scale=2,
    reduction="terms")``.

    Args:
        likelihood: "categorical", "bernoulli", "gaussian", a `Likelihood`, or one of those modules.

    Raises:
        ValueError: If the name is unknown or the loss module has options without a likelihood
            (class weights, ``pos_weight``, a reduction other than "mean").
        TypeError: If it is something else.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str):
        if likelihood not in _NAMES:
            raise ValueError(f"unknown likelihood {likelihood!r}; choose from {sorted(_NAMES)}")
        return _NAMES[likelihood]()
    if isinstance(likelihood, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss | nn.MSELoss):
        kind = type(likelihood).__name__
        if likelihood.reduction != "mean":
            raise ValueError(
                f"{kind}(reduction={likelihood.reduction!r}) has no normalised objective; "
                "use reduction='mean', or a kobai likelihood with its scale"
            )
        for option in ("weight", "pos_weight"):
            if getattr(likelihood, option, None) is not None:
                raise ValueError(f"{kind}({option}=…) is not supported; drop the {option}")
        if isinstance(likelihood, nn.CrossEntropyLoss):
            return Categorical(
                ignore_index=likelihood.ignore_index,
                label_smoothing=likelihood.label_smoothing,
                axis=1,
                reduction="terms",
            )
        if isinstance(likelihood, nn.BCEWithLogitsLoss):
            return Bernoulli(reduction="terms")
        return Gaussian(reduction="terms", scale=2.0)
    raise TypeError(
        "a likelihood is a name, a kobai likelihood, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss or "
        f"nn.MSELoss; got {type(likelihood).__name__}"
    )
