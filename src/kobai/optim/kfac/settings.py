"""K-FAC's settings: defaults, documentation, checks, flags of the command line and search space."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kobai.curvature.blocks import InverseMethod, Sharing
from kobai.curvature.blocks.factor_sums import check_sharing
from kobai.curvature.blocks.shifted_inverse import METHODS
from kobai.optim.damping import Damping, LevenbergMarquardt, first_damping
from kobai.optim.kfac.cotangents import Labels

KFACStructure = Literal["kronecker", "ekfac", "layer", "unit", "diagonal"]
"""Fisher structures that are one block for each layer."""

StatisticsExamples = int | Literal["auto", "all"]
"""How many examples of a batch are summed over."""

KFAC_RULE = LevenbergMarquardt(
    initial=0.01, raise_by=2.0, lower_by=0.5, minimum=1e-8, maximum=1e3, noise=1.0
)
"""The rule of damping="auto": at most one change per inversion, hence the larger factors."""

FIXED_BOUND = 0.03
"""The bound of kl_bound="auto" beside a learning rate in numbers, in nats."""

SPACE = {"lr": (1e-3, 1.0, "log"), "momentum": (0.0, 0.99), "damping": (1e-4, 1.0, "log")}
"""What is worth searching; see `kobai.optim.entry.Space`."""

GROUP = ("lr", "damping", "momentum", "weight_decay")
"""Settings of a parameter group."""

STATISTICS_DENSITY = 10
"""At the start the interval between statistics is a tenth of the steps made so far."""

INVERSE_DENSITY = 2
"""At the start the interval between inversions is half of the steps made so far."""

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16",
           torch.float16: "float16", None: "parameters"}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class KFACSettings:
    """Settings of `KFAC` and `EKFAC`."""

    structure: KFACStructure = "kronecker"
    """Fisher block of a layer: kronecker, B ⊗ A; ekfac, the same in its eigenbases with second
    moments measured; layer, every correlation in it; unit, a block for each output; diagonal."""
    lr: float | Literal["auto"] = "auto"
    """Learning rate, on which schedulers work as usual; auto: step and momentum by the quadratic
    model of the minibatch, on which schedulers are a factor that starts at 1."""
    damping: float | Literal["auto"] = "auto"
    """λ, added to the Fisher matrix, shared out between Kronecker factors by their scales; auto: by
    the reduction ratio. From Python also a schedule step ↦ number or a LevenbergMarquardt rule."""
    momentum: float = 0.9
    """Share of the last update kept, in [0, 1), beside a learning rate in numbers."""
    nesterov: bool = False
    """Whether that momentum looks ahead, as in torch.optim.SGD."""
    weight_decay: float = 0.0
    """Share of the parameters taken off each step, times the learning rate, or under auto times the
    share of a whole natural-gradient step that is made; steps not made decay nothing."""
    statistics_every: int | Literal["auto"] = 10
    """Steps between updates of the curvature statistics, at the start a tenth of the steps made;
    auto: halved while averages lag behind and doubled up to 100 while they do not."""
    inverse_every: int | Literal["auto"] = 100
    """Steps between inversions, at the start half of the steps made; auto: halved and doubled
    likewise up to 1,000, and at once where averages or damping have moved far."""
    kl_bound: float | Literal["auto", "none"] = "auto"
    """Largest squared length of a step in the Fisher metric, in nats; auto: what the minibatch
    allows, or 0.03 beside a learning rate in numbers; none: no bound there, kept as inf. A Gaussian
    likelihood has unit variance: standardise targets, or raise the bound by their variance."""
    output_damping: float = 1.0
    """c ≥ 0, added to the output Hessian, in units of the likelihood's scale; for categorical
    outputs on differences of logits only."""
    control_every: int = 10
    """Most steps from one measurement of the step to the next."""
    labels: Labels = "sampled"
    """Whose labels: sampled, drawn from the model; exact, all of them weighted, one backward pass
    per output; observed, the data's (the empirical Fisher matrix)."""
    sharing: Sharing = "trace"
    """Tokens, positions and time steps: expand, independent of each other; trace, the same with
    each block's trace exact; reduce, summed over first."""
    statistics_examples: StatisticsExamples = "auto"
    """Examples of a batch (of each process) that factors are summed over, in turns; auto: at least
    64, and rows as many as the larger factor has lines, but 256; batches that do not make two such
    blocks are whole; a number, or all."""
    distributed: bool = True
    """Whether processes of torch.distributed, where there are such, train one model together:
    statistics are then those of all of them, and inversions are shared out."""
    inverse: InverseMethod = "cholesky"
    """How factors are inverted (kronecker): cholesky; eigh, dearer, negative eigenvalues count as
    zero; newton-schulz, products of matrices only, left to Cholesky where it does not converge."""
    product_dtype: Literal["parameters", "float32", "float64", "float16", "bfloat16"] = "parameters"
    """Precision in which inverses are kept and multiplied (kronecker). parameters: that of the
    factors, at least float32; on a CPU that multiplies bfloat16 matrices, rows of linear layers are
    then rounded to it and wide inverses multiplied in two bfloat16 pieces where that moves a step
    by less than 1 %; float32 turns both off. bfloat16 can spoil steps along much curvature."""
    factor_dtype: Literal["parameters", "float32", "float64"] = "parameters"
    """Precision of the factors' sums, averages and inversion; parameters: theirs, at least
    float32."""

    def __post_init__(self) -> None:
        if self.kl_bound == "none":
            # As a number it stays what it is in a file of settings, which leaves None out.
            object.__setattr__(self, "kl_bound", math.inf)
        self._check_names()
        for name in ("statistics_every", "inverse_every", "control_every"):
            interval = getattr(self, name)
            if isinstance(interval, str):
                if interval != "auto" or name == "control_every":
                    raise ValueError(f"{name} is a number of steps or 'auto', got {interval!r}")
            elif interval < 1:
                raise ValueError(f"{name} must be at least 1 step, got {interval}")
        if isinstance(self.kl_bound, str):
            if self.kl_bound != "auto":
                raise ValueError(
                    f"kl_bound is a positive number, None or 'auto', got {self.kl_bound!r}"
                )
        elif not self.kl_bound > 0:
            raise ValueError(f"kl_bound must be positive, None or 'auto', got {self.kl_bound}")
        if not (math.isfinite(self.output_damping) and self.output_damping >= 0):
            raise ValueError(
                f"output_damping must be non-negative and finite, got {self.output_damping}"
            )
        examples = self.statistics_examples
        if examples not in ("auto", "all") and (isinstance(examples, str) or examples < 1):
            raise ValueError(
                "statistics_examples must be a number of examples (at least 1), 'auto' or 'all', "
                f"got {examples!r}"
            )
        if self.nesterov and self.lr == "auto":
            raise ValueError(
                'nesterov=True belongs to a learning rate in numbers; under lr="auto" the momentum '
                "is measured"
            )
        check_group(self.group())

    def _check_names(self) -> None:
        """Refuse words that stand for nothing here."""
        if self.structure not in get_args(KFACStructure):
            raise ValueError(
                f"structure={self.structure!r} is not one block for each layer; KFAC takes "
                f"{', '.join(get_args(KFACStructure))}; kobai.optim.NaturalGradient takes every "
                "structure"
            )
        check_sharing(self.sharing)
        if self.inverse not in METHODS:
            raise ValueError(f"inverse must be one of {', '.join(METHODS)}, got {self.inverse!r}")
        if self.labels not in get_args(Labels):
            raise ValueError(
                f"labels must be 'sampled', 'exact' or 'observed', got {self.labels!r}"
            )
        if self.product_dtype not in _DTYPES.values():
            raise ValueError(
                f"product_dtype={self.product_dtype}: inverses are multiplied in a floating-point "
                "precision"
            )
        if self.factor_dtype not in ("parameters", "float32", "float64"):
            raise ValueError(
                f"factor_dtype is torch.float32, torch.float64 or None, got {self.factor_dtype}: "
                "averages in less lose what an update adds"
            )
        if self.structure != "kronecker":
            if self.inverse != "cholesky":
                raise ValueError(
                    f"inverse={self.inverse!r}: {self.structure} has eigenvectors in place of "
                    "inverses; leave it out"
                    if self.structure == "ekfac"
                    else f"inverse={self.inverse!r} is for structure='kronecker'; leave it out"
                )
            if self.product_dtype != "parameters":
                raise ValueError(
                    f"product_dtype={self.product_dtype} is for structure='kronecker'; leave it out"
                )

    @classmethod
    def of(cls, **options: Any) -> "KFACSettings":
        """Make settings of what Python code writes.

        Args:
            **options: The fields. Besides their own values ``kl_bound=None`` is no bound,
                ``factor_dtype`` and ``product_dtype`` take a `torch.dtype` or None, and ``damping``
                takes a schedule step ↦ number or a `LevenbergMarquardt` rule.

        Raises:
            TypeError: If there is no such setting.
            ValueError: If a value is out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in ("factor_dtype", "product_dtype"):
            value = options.get(name)
            if not isinstance(value, str):
                options[name] = _DTYPES.get(value, str(value))
        if options.get("kl_bound", 0.0) is None:
            options["kl_bound"] = math.inf
        unknown = sorted(set(options) - known)
        if unknown:
            raise TypeError(
                f"KFAC has no setting {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
            )
        rule = options.get("damping", "auto")
        if isinstance(rule, float | int | str) and not isinstance(rule, bool):
            return cls(**options)
        # A rule or schedule is no value that the command line or a file could hold.
        first_damping(rule, positive=True)
        made = cls(**{**options, "damping": "auto"})
        object.__setattr__(made, "damping", rule)
        return made

    @property
    def rule(self) -> Damping:
        """The damping with "auto" replaced by the rule it stands for."""
        return KFAC_RULE if isinstance(self.damping, str) else self.damping

    @property
    def factored(self) -> bool:
        """Whether layers' blocks are made of Kronecker factors, those of equal shape in stacks."""
        return self.structure in ("kronecker", "ekfac")

    @property
    def precision(self) -> torch.dtype | None:
        """Precision of the factors; None for that of the parameters, but at least float32."""
        return None if self.factor_dtype == "parameters" else getattr(torch, self.factor_dtype)

    @property
    def product_precision(self) -> torch.dtype | None:
        """Precision of products with inverses; None for that of the momentum."""
        return None if self.product_dtype == "parameters" else getattr(torch, self.product_dtype)

    def group(self) -> dict[str, float]:
        """Return what a parameter group begins with; "auto" is a factor of one on the step.

        Raises:
            TypeError: If the damping is none of its forms.
            ValueError: If lr or damping is another word, or the damping is out of range.
        """
        for name in ("lr", "damping"):
            value = getattr(self, name)
            if isinstance(value, str) and value != "auto":
                raise ValueError(f"{name} is a number or 'auto', got {value!r}")
        return {
            "lr": 1.0 if isinstance(self.lr, str) else self.lr,
            "damping": first_damping(self.rule, positive=True),
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }


KFACConfig = KFACSettings
"""The older name of `KFACSettings`."""


def check_group(group: dict[str, Any]) -> None:
    """Refuse settings of a parameter group that no step could be made with.

    Raises:
        ValueError: Naming the setting.
    """
    for name in ("lr", "damping"):
        value = group[name]
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
    if not (math.isfinite(group["weight_decay"]) and group["weight_decay"] >= 0):
        raise ValueError(
            f"weight_decay must be non-negative and finite, got {group['weight_decay']}"
        )


def due(step: int, last: int | None, every: int, density: int) -> bool:
    """Say whether it is time again: intervals are 1/density of the steps so far, up to `every`.

    Args:
        step: Number of steps made.
        last: The step of the last time, or None.
        every: Longest interval.
        density: How many times in the steps made so far.
    """
    return last is None or step - last >= min(every, max(1, last // density))


def all_finite(gradients: Sequence[Tensor]) -> bool:
    """Say whether no gradient holds NaN or infinity."""
    # A sum is finite only if every entry is; where it overflows by itself, look closely.
    return all(math.isfinite(float(g.sum())) or bool(torch.isfinite(g).all()) for g in gradients)
