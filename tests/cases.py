"""Tiny problems by name, in float64: the networks every matrix and optimizer is tried on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kobai.problem import Categorical, EmpiricalRisk, Problem


class TokenClassifier(nn.Module):
    """Embedding, one stock transformer layer (default attention), an output for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)))


class Recurrent(nn.Module):
    """A stock recurrent layer and a linear read-out of its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv(x)))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """The same square layer twice, and a decoder that is the encoder's transpose by name only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.head = nn.Linear(4, 4)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Keywords(nn.Module):
    """Takes keyword inputs and returns a mapping, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, *, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.tanh(self.left(a) + self.right(b)))}


def _classes(n: int, c: int) -> Tensor:
    return torch.randint(0, c, (n,))


def _mlp():
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    return net, "categorical", (torch.randn(9, 5), _classes(9, 3))


def _inplace():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    return net, "categorical", (torch.randn(8, 5), _classes(8, 3))


def _tokens():
    """Linear layers over a further axis return views, which in-place work reroutes."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    return net, "categorical", (torch.randn(4, 2, 3), torch.randint(0, 3, (4, 2)))


def _regression():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    return net, "gaussian", (torch.randn(7, 4), torch.randn(7, 2))


def _binary():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    return net, "bernoulli", (torch.randn(7, 4), torch.randint(0, 2, (7, 2)).double())


def _deep_linear():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    return net, "gaussian", (torch.randn(7, 4), torch.randn(7, 4))


def _mean_squared():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    return net, nn.MSELoss(), (torch.randn(7, 4), torch.randn(7, 2))


def _smoothed():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return net, nn.CrossEntropyLoss(label_smoothing=0.1), (torch.randn(7, 4), _classes(7, 3))


def _soft():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return net, "categorical", (torch.randn(7, 4), torch.randn(7, 3).softmax(1))


def _cnn():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return net, "categorical", (torch.randn(6, 1, 4, 4), _classes(6, 3))


def _resnet():
    return Residual(), "categorical", (torch.randn(6, 1, 4, 4), _classes(6, 3))


def _lstm():
    return Recurrent(nn.LSTM), "categorical", (torch.randn(5, 3, 3), _classes(5, 2))


def _gru():
    return Recurrent(nn.GRU), "gaussian", (torch.randn(5, 3, 3), torch.randn(5, 2))


def _transformer():
    tokens = torch.randint(0, 7, (4, 3))
    labels = torch.randint(0, 3, (4, 3))
    labels[0, 1] = labels[2, 0] = -100
    return TokenClassifier(), Categorical(reduction="terms"), (tokens, labels)


def _segmentation():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Tanh(), nn.Conv2d(2, 3, 1))
    labels = torch.randint(0, 3, (4, 3, 3))
    labels[0, 0] = -100
    return net, nn.CrossEntropyLoss(), (torch.randn(4, 1, 3, 3), labels)


def _tied():
    return Tied(), "gaussian", (torch.randn(6, 4), torch.randn(6, 4))


def _frozen():
    net, likelihood, data = _mlp()
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net, likelihood, data


def _keywords():
    inputs = {"a": torch.randn(6, 3), "b": torch.randn(6, 2)}
    return Keywords(), "categorical", (inputs, _classes(6, 3))


def _single():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return net, "categorical", (torch.randn(1, 3), _classes(1, 2))


def _norms():
    net = nn.Sequential(
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        nn.Tanh(),
        nn.GroupNorm(2, 6),
        nn.RMSNorm(6),
        nn.Linear(6, 2),
    )
    return net, "gaussian", (torch.randn(6, 4), torch.randn(6, 2))


CASES: dict[str, Callable] = {
    "mlp": _mlp,
    "inplace": _inplace,
    "tokens": _tokens,
    "regression": _regression,
    "binary": _binary,
    "deep-linear": _deep_linear,
    "mean-squared": _mean_squared,
    "smoothed": _smoothed,
    "soft": _soft,
    "cnn": _cnn,
    "resnet": _resnet,
    "lstm": _lstm,
    "gru": _gru,
    "transformer": _transformer,
    "segmentation": _segmentation,
    "tied": _tied,
    "frozen": _frozen,
    "keywords": _keywords,
    "single": _single,
    "norms": _norms,
}


def problem(name: str, seed: int = 0) -> Problem:
    """A case by name: float64, eval mode, statistics and scales moved off their defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, likelihood, (x, y) = CASES[name]()
        model = model.double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter.add_(0.3 * torch.randn_like(parameter))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)

        def double(t):
            return t.double() if t.is_floating_point() else t

        x = {k: double(v) for k, v in x.items()} if isinstance(x, dict) else double(x)
        return Problem(model, likelihood, train=(x, double(y)))


def objective(name: str, chunk: int | None = None) -> EmpiricalRisk:
    """The full-data objective of a case."""
    return problem(name).objective(chunk=chunk)


def dense_loss(objective: EmpiricalRisk):
    """θ ↦ L(θ) written with torch's own losses where there is one: the oracle's view."""

    def loss(theta: Tensor) -> Tensor:
        total = theta.new_zeros(())
        for batch in objective.batches:
            outputs = objective.forward(theta, batch)
            total = total + objective.likelihood.nll(outputs, batch.targets).sum()
        return total / objective.weight

    return loss
