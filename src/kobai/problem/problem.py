"""A problem: a model, what its outputs mean, and the data it is to learn from."""

import contextlib
import numbers
from collections.abc import Collection, Iterator
from typing import Any, Literal, final

import torch
from torch import nn
from torch.func import functional_call

from kobai.problem.batch import Batch, input_tensors
from kobai.problem.calling import buffer_copies, call_arguments, output_tensor
from kobai.problem.examples import (
    Examples,
    StreamedExamples,
    TensorExamples,
    as_batch,
    as_examples,
    require_finite_inputs,
    split_off,
)
from kobai.problem.likelihoods import Likelihood, as_likelihood
from kobai.problem.parameters import ParameterSpace
from kobai.problem.purity import evaluation_mode, exact_kernels
from kobai.problem.risk import EmpiricalRisk

Split = Literal["train", "validation", "test"]

MEMORY_BOUND = 2**30
"""Bytes that the saved activations of one chunk may take when no chunk size is given."""


@final
class Problem:
    """Model, likelihood and data: a declaration that hands out objectives.

    Args:
        model: Any module from inputs to outputs, examples first.
        likelihood: "categorical", "bernoulli", "gaussian", a name given to `register_likelihood`,
            a `Likelihood` (also of one's own), or a torch loss module (``CrossEntropyLoss``,
            ``BCEWithLogitsLoss``, ``MSELoss``), whose scale is kept.
        train: Training data: tensors (inputs, targets), a `Batch`, a `Dataset` or a `DataLoader`.
        validation: Validation data in one of these forms, or a fraction of the training data, drawn
            by the generator; None for none.
        test: Test data in one of these forms; None for none.
        generator: Draws the validation split; needed only then.

    Raises:
        ValueError: If shapes, labels, dtypes or values do not fit; nothing is adjusted in silence.
            Data in memory are checked here, a data set whenever a part of it is loaded.
        TypeError: If the data, the likelihood or the model's outputs are of no known kind.

    Example:
        >>> import torch
        >>> from kobai import Problem
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 3, 1)
        >>> x, y = torch.ones(5, 3), torch.zeros(5, 1)
        >>> Problem(model, "gaussian", train=(x, y)).objective().size
        5
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module,
        train: Any,
        validation: Any = None,
        test: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.likelihood = as_likelihood(likelihood)
        self.space = ParameterSpace(model)
        self.train = as_examples(train, name="train")
        self.validation: Examples | None = None
        if isinstance(validation, numbers.Real):
            if generator is None:
                raise ValueError(
                    "drawing a validation fraction needs generator=torch.Generator(); "
                    "or pass the validation data itself"
                )
            self.train, self.validation = split_off(
                self.train, float(validation), generator=generator
            )
        elif validation is not None:
            self.validation = as_examples(validation, name="validation")
        self.test = None if test is None else as_examples(test, name="test")
        self._chunk: int | None = None
        self.train = self._checked("train", self.train)
        if self.validation is not None:
            self.validation = self._checked("validation", self.validation)
        if self.test is not None:
            self.test = self._checked("test", self.test)

    @property
    def splits(self) -> tuple[Split, ...]:
        """Names of the splits there are."""
        known: list[Split] = ["train"]
        if self.validation is not None:
            known.append("validation")
        if self.test is not None:
            known.append("test")
        return tuple(known)

    def examples(self, split: Split) -> Examples:
        """The examples of a split.

        Raises:
            ValueError: If the problem has no such split.
        """
        found = {"train": self.train, "validation": self.validation, "test": self.test}.get(split)
        if found is None:
            raise ValueError(f"this problem has the splits {self.splits}, got split={split!r}")
        return found

    def objective(
        self,
        batch: Batch | None = None,
        *,
        split: Split = "train",
        coupled: bool = False,
        chunk: int | None = None,
    ) -> EmpiricalRisk:
        """The empirical risk over a whole split, or over one batch.

        Args:
            batch: Only these examples; then `split` and `chunk` play no part.
            split: The split of the data.
            coupled: See `EmpiricalRisk`; the whole split becomes one batch.
            chunk: Examples per forward pass. Default: as many as keep the saved activations,
                measured by one forward pass of two examples, under 1 GiB. Sums do not depend on it.

        Raises:
            ValueError: If there is no such split, or the chunk is not positive or cuts what
                `coupled` holds together.
        """
        if not self.space.is_current():
            self.space = ParameterSpace(self.model)
        if batch is not None:
            return EmpiricalRisk(
                self.model, self.likelihood, (as_batch(batch),), coupled=coupled, space=self.space
            )
        examples = self.examples(split)
        if coupled:
            if chunk is not None and chunk < examples.size:
                raise ValueError(
                    f"coupled=True needs all {examples.size} examples in one batch, got "
                    f"chunk={chunk}; leave chunk out"
                )
            chunk = examples.size
        elif chunk is None:
            chunk = self._chunk_size(examples)
        batches: Collection[Batch] = examples.batches(chunk)
        return EmpiricalRisk(
            self.model, self.likelihood, batches, coupled=coupled, space=self.space
        )

    def minibatches(self, size: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch of shuffled training batches.

        Raises:
            ValueError: If the size is not positive.
        """
        if size < 1:
            raise ValueError(f"batch size must be at least 1, got {size}")
        return self.train.minibatches(min(size, self.train.size), generator=generator)

    def to(self, device: torch.device | str) -> "Problem":
        """Move the model, and the data that is held in memory, to a device; returns itself."""
        self.model.to(device)

        def move(examples: Examples | None) -> Examples | None:
            return examples.to(device) if isinstance(examples, TensorExamples) else examples

        self.train = self.train.to(device) if isinstance(self.train, TensorExamples) else self.train
        self.validation, self.test = move(self.validation), move(self.test)
        return self

    def _probe(self, batch: Batch, state: dict[str, torch.Tensor]) -> Any:
        """Call the model in eval mode, leaving modes, buffers and random state alone."""
        devices = [self.space.device] if self.space.device.type == "cuda" else []
        with evaluation_mode(self.model), torch.random.fork_rng(devices=devices):
            args, kwargs = call_arguments(batch)
            return functional_call(self.model, state, args, kwargs, tie_weights=False)

    def _checked(self, name: str, examples: Examples) -> Examples:
        """Hold a split against the model: dtype, output shape, range of the targets."""
        # Two examples, since with one alone an axis that a model drops or mixes goes unseen.
        few = examples.first(2)
        for tensor in input_tensors(few.inputs):
            if tensor.is_floating_point() and tensor.dtype != self.space.dtype:
                raise ValueError(
                    f"{name}: inputs are {tensor.dtype} but the model computes in "
                    f"{self.space.dtype}; convert one of them by .to(dtype)"
                )
        on_device = few.to(self.space.device)
        try:
            with torch.no_grad():
                returned = self._probe(on_device, buffer_copies(self.model))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            shapes = [tuple(t.shape[1:]) for t in input_tensors(few.inputs)]
            raise ValueError(
                f"{name}: the model does not accept inputs of shape {shapes} an example: {error}"
            ) from error
        outputs = output_tensor(returned)
        if outputs.ndim == 0 or outputs.shape[0] != few.size:
            raise ValueError(
                f"{name}: the model must return one row of outputs an example, got shape "
                f"{tuple(outputs.shape)} for {few.size} example(s)"
            )
        if not outputs.is_floating_point():
            raise ValueError(
                f"{name}: the model must return floating-point outputs, got {outputs.dtype}; "
                "return logits or means, not decisions"
            )
        shape, dtype = outputs.shape[1:], outputs.dtype

        def fits(batch: Batch) -> None:
            try:
                require_finite_inputs(batch)
                # Sequences padded batch by batch may be longer than the first ones.
                if batch.targets.shape[1:] == few.targets.shape[1:]:
                    # Of the outputs only the shape counts; nothing is copied between devices.
                    zero = torch.zeros((), dtype=dtype, device=batch.targets.device)
                    self.likelihood.check(zero.expand(batch.size, *shape), batch.targets)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

        if isinstance(examples, StreamedExamples):
            fits(few)
            return examples.inspected(fits)
        if isinstance(examples, TensorExamples):
            fits(examples.all)
        return examples

    def _chunk_size(self, examples: Examples) -> int:
        if self._chunk is None:
            batch = examples.first(2).to(self.space.device)
            state = buffer_copies(self.model)
            seen: dict[int, int] = {}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                # The kernels of curvature products, which keep more than the fused ones.
                stack.enter_context(exact_kernels(self.model))
                stack.enter_context(
                    torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
                )
                self._probe(batch, state)
            own = [*self.model.parameters(), *state.values(), *input_tensors(batch.inputs)]
            pointers = {tensor.untyped_storage().data_ptr() for tensor in own}
            saved = sum(size for pointer, size in seen.items() if pointer not in pointers)
            self._chunk = max(1, int(MEMORY_BOUND * batch.size / max(saved, 1)))
        return min(self._chunk, examples.size)
