"""FitNets: a thin deep student is first guided by a teacher's hidden layer, then by its outputs.

Both stages are ordinary problems, for any optimizer: the first is least squares on the hint, the
second softmax classification with two targets, the labels and the teacher's softened outputs.
"""

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kobai.problem import Categorical, Problem, evaluation_mode
from kobai.results import History
from kobai.training.loop import train


@final
class Tempered(nn.Module):
    """A network that returns its logits twice: as they are, and divided by a temperature.

    Args:
        model: From inputs to logits (N, C).
        temperature: τ.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"the temperature must be positive, got {temperature}")
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Float[Tensor, "N 2 C"]:
        """Logits and softened logits."""
        logits = self.model(x)
        return torch.stack([logits, logits / self.temperature], 1)


def hint_problem(
    guided: nn.Module, regressor: nn.Module, hint: nn.Module, inputs: Tensor
) -> Problem:
    """Stage 1: ½‖hint(x) − r(guided(x))‖² over the student's first layers and the regressor.

    Args:
        guided: The student up to its guided layer.
        regressor: From the guided layer's output to the shape of the hint; it starts small.
        hint: The teacher up to its hint layer, which is left alone.
        inputs: Training inputs; the teacher sees them once, in evaluation mode.

    Source: Romero et al. 2015, FitNets: hints for thin deep nets, equation 3.
    """
    with torch.no_grad(), evaluation_mode(hint):
        targets = hint(inputs).flatten(1)
    model = nn.Sequential(guided, regressor, nn.Flatten())
    return Problem(model, "gaussian", train=(inputs, targets))


def distillation_problem(
    student: nn.Module,
    teacher: nn.Module,
    train_data: tuple[Tensor, Int[Tensor, " N"]],
    *,
    temperature: float = 3.0,
    weight: float = 1.0,
) -> Problem:
    """Stage 2: H(y, softmax f_S) + λ H(softmax(f_T/τ), softmax(f_S/τ)).

    Args:
        student: From inputs to logits (N, C).
        teacher: Likewise; it is left alone.
        train_data: Inputs and class labels.
        temperature: τ, above 1 to soften.
        weight: λ, 0 or more.

    Returns:
        A problem of `Tempered`; its recorded accuracy counts both targets, so measure the student
        itself afterwards.

    Raises:
        ValueError: If a number is out of range.

    Source: Hinton, Vinyals and Dean 2015, Distilling the knowledge in a neural network; Romero et
    al. 2015, equation 2.
    """
    if weight < 0:
        raise ValueError(f"weight must not be negative, got {weight}")
    inputs, labels = train_data
    with torch.no_grad(), evaluation_mode(teacher):
        logits = teacher(inputs)
    hard = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    soft = weight * (logits / temperature).softmax(1)
    model = Tempered(student, temperature)
    return Problem(model, Categorical(), train=(inputs, torch.stack([hard, soft], 1)))


def train_by_hints(
    student: nn.Sequential,
    teacher: nn.Sequential,
    regressor: nn.Module,
    train_data: tuple[Tensor, Int[Tensor, " N"]],
    make: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    guided: int,
    hint: int,
    epochs: tuple[float, float],
    batch_size: int = 128,
    temperature: float = 3.0,
    weight: float = 1.0,
    generator: torch.Generator,
) -> tuple[History, History]:
    """Both stages: hints, then distillation of the whole student.

    Args:
        student: Its modules one after the other; changed in place.
        teacher: A trained network; left alone.
        regressor: From the output of the student's first `guided` modules to that of the teacher's
            first `hint`; usually a dense layer with small random weights.
        train_data: Inputs and class labels.
        make: From a module to an optimizer of its parameters; called once a stage.
        guided: g, modules of the student that are guided.
        hint: h, modules of the teacher that give the hint.
        epochs: Of the two stages.
        batch_size: Examples a minibatch.
        temperature: τ of the second stage.
        weight: λ of the second stage.
        generator: Draws the order of the examples.

    Returns:
        The records of both stages.

    Raises:
        ValueError: If g or h is out of range.

    Source: Romero et al. 2015, Algorithm 1.
    """
    if not (0 < guided <= len(student) and 0 < hint <= len(teacher)):
        raise ValueError(
            f"guided lies in 1 to {len(student)} and hint in 1 to {len(teacher)}, got {guided} "
            f"and {hint}"
        )
    first = hint_problem(student[:guided], regressor, teacher[:hint], train_data[0])
    second = distillation_problem(
        student, teacher, train_data, temperature=temperature, weight=weight
    )
    before = train(first, make(first.model), epochs=epochs[0], batch_size=batch_size,
                   generator=generator, label="hints")  # fmt: skip
    after = train(second, make(second.model), epochs=epochs[1], batch_size=batch_size,
                  generator=generator, label="distillation")  # fmt: skip
    return before, after
