"""Principal directions of trajectories, with what a random walk would show beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.subspace import Directions

BLOCK = 2**22
"""Numbers of the centred snapshots held in float64 at a time."""

Snapshots = Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]]


def pca_directions(
    trajectories: Snapshots | Mapping[str, Snapshots],
    *,
    count: int = 2,
    origin: Literal["last", "mean"] = "last",
) -> Directions:
    """Directions of largest variance of one trajectory, or of several jointly.

    The T x T Gram matrix of the snapshots is summed up over blocks of coordinates; nothing of size
    P x P is formed. Directions have unit norm, so that coordinates are distances.

    Most of the variance of any random walk lies in two directions: about its end point, an
    isotropic walk of many steps shows 81 % and 9 % (Antognini & Sohl-Dickstein 2018, PCA of high
    dimensional random walks with comparison to neural network training). `Directions.null` holds
    those shares for as many runs and steps, in the limit of many dimensions; compare `explained`
    with it before reading anything into a trajectory's shape.

    Args:
        trajectories: Snapshots in order: a matrix (T, P), a list of vectors, or label to such.
        count: How many directions.
        origin: "last", the end of the first trajectory (Li et al. 2018, §7), or "mean", the mean of
            all snapshots (ordinary PCA).

    Returns:
        The directions, with `explained` and `null`; ends of the runs are marked points. Cost: T²P.

    Raises:
        ValueError: If there are not more snapshots than directions, or they do not move.
    """
    runs = trajectories if isinstance(trajectories, Mapping) else {"run": trajectories}
    snapshots = [theta for run in runs.values() for theta in run]
    if origin not in ("last", "mean"):
        raise ValueError(f"origin must be 'last' or 'mean', got {origin!r}")
    if len(snapshots) <= count:
        raise ValueError(
            f"{count} principal directions need more than {count} snapshots, got {len(snapshots)}"
        )
    lengths = [len(run) for run in runs.values()]
    if 0 in lengths:
        raise ValueError("every trajectory needs at least one snapshot")
    reference = lengths[0] - 1 if origin == "last" else None
    label = next(iter(runs)) if reference is not None else "mean of the snapshots"
    ends = {name: run[-1] for name, run in runs.items()}
    return principal_directions(
        snapshots,
        count,
        reference,
        kind="pca",
        label=label,
        marked=ends,
        null=_random_walk(snapshots, lengths, reference)[:count],
    )


def principal_directions(
    snapshots: Sequence[Tensor],
    count: int,
    reference: int | None,
    *,
    kind: str,
    label: str,
    marked: Mapping[str, Tensor],
    null: tuple[float, ...] = (),
) -> Directions:
    """Find the directions in which points vary most.

    Args:
        snapshots: The points.
        count: How many directions.
        reference: Which of the points lies at the origin; None: their mean.
        kind: The kind of the directions.
        label: What lies at the origin.
        marked: Label to points that are marked.
        null: Shares of variance that a random walk would show.
    """
    if len({tuple(s.shape) for s in snapshots}) != 1:
        raise ValueError("the snapshots differ in length; they need one model")
    origin = snapshots[0 if reference is None else reference]
    if reference is None:
        mean = torch.zeros_like(origin, dtype=torch.float64)
        for snapshot in snapshots:
            mean += snapshot.to(origin.device).double() / len(snapshots)
        origin = mean.to(origin.dtype)
    width = max(1, BLOCK // len(snapshots))
    spans = [slice(s, s + width) for s in range(0, origin.numel(), width)]

    def centred(span: slice) -> Tensor:
        rows = torch.stack([s[span].to(origin.device) for s in snapshots]).double()
        return rows - origin[span].double()

    gram = torch.zeros(len(snapshots), len(snapshots), dtype=torch.float64, device=origin.device)
    for span in spans:
        rows = centred(span)
        gram += rows @ rows.T
    values, weights = torch.linalg.eigh(gram)
    values, weights = values.flip(0).clamp(min=0.0), weights.flip(1)
    total = float(values.sum())
    if not total > 0:
        raise ValueError("the snapshots do not move, so they have no principal directions")
    if not float(values[count - 1]) > 1e-12 * total:
        raise ValueError(
            f"the snapshots span fewer than {count} directions; ask for count=1 or add snapshots"
        )
    top = weights[:, :count] / values[:count].sqrt()
    vectors = torch.cat([centred(span).T @ top for span in spans])
    # The sign of an eigenvector is arbitrary: the first snapshot gets coordinates that are not
    # negative, so that the same run always gives the same picture.
    first = (snapshots[0].to(origin.device).double() - origin.double()) @ vectors
    vectors *= torch.where(first < 0, -1.0, 1.0)
    explained = tuple((values[:count] / total).tolist())
    made = Directions(
        origin=origin,
        vectors=vectors.to(origin.dtype),
        names=tuple(f"PC {i + 1}" for i in range(count)),
        kind=kind,
        origin_label=label,
        explained=explained,
        null=null,
    )
    places = made.project(marked.values())[0].tolist()
    shares = " + ".join(f"{100 * share:.1f} %" for share in explained)
    note = f"PCA of {len(snapshots)} points, explained variance {shares}"
    if null:
        note += "; a random walk: " + " + ".join(f"{100 * share:.1f} %" for share in null)
    points = {name: tuple(c) for name, c in zip(marked, places, strict=True)}
    return dataclasses.replace(made, points=points, note=note)


def _random_walk(
    snapshots: list[Tensor], lengths: list[int], reference: int | None
) -> tuple[float, ...]:
    """Explained variance of isotropic random walks from a common start, in many dimensions.

    In the limit of many dimensions increments are orthogonal and of one length, so the Gram matrix
    of the walk is S Sᵀ with S counting the increments: no sampling is needed.
    """
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    if any(not torch.equal(snapshots[0], snapshots[s]) for s in starts[1:]):
        return ()
    blocks = [torch.ones(n, n, dtype=torch.float64).tril(-1)[:, : max(n - 1, 0)] for n in lengths]
    walk = torch.block_diag(*blocks)
    walk = walk - (walk.mean(0) if reference is None else walk[reference])
    values = torch.linalg.eigvalsh(walk @ walk.T).flip(0).clamp(min=0.0)
    return tuple((values / values.sum()).tolist()) if float(values.sum()) > 0 else ()
