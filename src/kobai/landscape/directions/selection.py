"""Named filters of the parameters that a random direction leaves where they are."""

import fnmatch
from collections.abc import Callable, Sequence

from kobai.layers import is_kind
from kobai.problem import ParameterSpace


def _is_bias(space: ParameterSpace, name: str) -> bool:
    # Recurrent layers call theirs bias_ih_l0, attention in_proj_bias.
    last = name.rpartition(".")[2]
    return last.startswith("bias") or last.endswith("bias")


def _is_norm(space: ParameterSpace, name: str) -> bool:
    owner = space.module.get_submodule(name.rpartition(".")[0])
    # By name as well: people write their own RMSNorm.
    return is_kind(owner, "norm") or "norm" in type(owner).__name__.lower()


def _is_vector(space: ParameterSpace, name: str) -> bool:
    return len(space.shapes[space.names.index(name)]) < 2


def _is_embedding(space: ParameterSpace, name: str) -> bool:
    return is_kind(space.module.get_submodule(name.rpartition(".")[0]), "embedding")


FILTERS: dict[str, Callable[[ParameterSpace, str], bool]] = {
    "bias": _is_bias,
    "norm": _is_norm,
    "vectors": _is_vector,
    "embedding": _is_embedding,
}
"""Filter name to test: "bias", "norm" (normalisation layers), "vectors" (fewer than two axes)."""


def excluded_parameters(
    space: ParameterSpace, exclude: Sequence[str], *, only: Sequence[str] = ()
) -> frozenset[str]:
    """Name the parameters that the filters take out.

    Args:
        space: The parameters.
        exclude: Names of `FILTERS`, or shell patterns on parameter names such as "head.*".
        only: Shell patterns; parameters that match none are taken out too.

    Raises:
        ValueError: If an entry is neither a filter nor matches a parameter, or nothing is left.
        TypeError: If a single string is given where a sequence is meant.
    """
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a sequence of filters, such as ({exclude!r},)")
    out: set[str] = set()
    for entry in exclude:
        if entry in FILTERS:
            out |= {name for name in space.names if FILTERS[entry](space, name)}
        else:
            known = ", ".join(FILTERS)
            problem = f"exclude={entry!r} is neither a filter ({known}) nor matches a parameter"
            out |= _matching(space, entry, problem)
    if isinstance(only, str):
        raise TypeError(f"only must be a sequence of patterns, such as ({only!r},)")
    kept: set[str] = set()
    for pattern in only:
        kept |= _matching(space, pattern, f"only={pattern!r} matches no parameter")
    if only:
        out |= set(space.names) - kept
    if len(out) == len(space.names):
        raise ValueError(
            f"exclude={tuple(exclude)}{f' with only={tuple(only)}' if only else ''} leaves no "
            "parameter to move; exclude less, such as exclude=()"
        )
    return frozenset(out)


def _matching(space: ParameterSpace, pattern: str, problem: str) -> set[str]:
    found = fnmatch.filter(space.names, pattern)
    if not found:
        raise ValueError(f"{problem}; the parameters are {', '.join(space.names)}")
    return set(found)
