"""What the source says, claim by claim, and the numbers it prints."""

from kobai.results import Claim

TITLE = "Skip connections and the natural gradient"

SOURCE: dict[tuple[str, str, str, str], float] = {
    ("train_accuracy", "small", "plain", "sgd"): 0.9216,
    ("train_accuracy", "small", "plain", "kfac"): 0.9286,
    ("train_accuracy", "small", "skips", "sgd"): 0.9140,
    ("train_accuracy", "small", "skips", "kfac"): 0.9364,
    ("test_accuracy", "small", "plain", "sgd"): 0.9113,
    ("test_accuracy", "small", "plain", "kfac"): 0.9132,
    ("test_accuracy", "small", "skips", "sgd"): 0.9032,
    ("test_accuracy", "small", "skips", "kfac"): 0.9153,
    ("train_accuracy", "large", "plain", "sgd"): 0.9287,
    ("train_accuracy", "large", "plain", "kfac"): 0.9256,
    ("train_accuracy", "large", "skips", "sgd"): 0.9324,
    ("train_accuracy", "large", "skips", "kfac"): 0.9357,
    ("test_accuracy", "large", "plain", "sgd"): 0.9188,
    ("test_accuracy", "large", "plain", "kfac"): 0.9092,
    ("test_accuracy", "large", "skips", "sgd"): 0.9200,
    ("test_accuracy", "large", "skips", "kfac"): 0.9212,
}
"""Measure, batch (256 or 8192), network, optimizer → accuracy, tables 1 to 4."""

PRINTED: dict[tuple[str, str, str], float] = {
    ("train_accuracy", "small", "sgd"): -0.007,
    ("train_accuracy", "small", "kfac"): 0.008,
    ("test_accuracy", "small", "sgd"): -0.008,
    ("test_accuracy", "small", "kfac"): 0.002,
    ("train_accuracy", "large", "sgd"): 0.003,
    ("train_accuracy", "large", "kfac"): 0.010,
    ("test_accuracy", "large", "sgd"): 0.001,
    ("test_accuracy", "large", "kfac"): 0.012,
}
"""What the tables print as the difference that skips make; not all follow from the accuracies."""

EXPECTED = (
    Claim(
        key="small-batch",
        text="with the small batch K-FAC beats SGD in training and validation",
        where="section 4.1, tables 1 and 2",
        figure="tables",
    ),
    Claim(
        key="large-plain",
        text="with the large batch and no skips K-FAC falls behind SGD, in validation markedly",
        where="section 4.2, tables 3 and 4",
        figure="tables",
    ),
    Claim(
        key="large-skips",
        text="with the large batch skips repair K-FAC, and help it most there",
        where="section 4.2, tables 3 and 4",
        figure="tables",
    ),
    Claim(
        key="more-than-sgd",
        text="skips help K-FAC more than SGD at either batch",
        where="tables 1 to 4",
        figure="tables",
    ),
    Claim(
        key="sgd-small",
        text="with the small batch skips lower SGD",
        where="tables 1 and 2",
        figure="tables",
    ),
    Claim(
        key="kfac-wins",
        text="with skips and the large batch K-FAC beats SGD in training and validation",
        where="section 4.2, tables 3 and 4",
        figure="tables",
    ),
    Claim(
        key="gradient",
        text="the gradient in the weights above the skip is that of the plain network",
        where="section 3",
        figure="mechanism",
    ),
    Claim(
        key="added-term",
        text="the block of the weights below the skip is the plain one plus x xᵀ",
        where="section 3",
        figure="mechanism",
    ),
    Claim(
        key="degenerate",
        text="the Fisher matrix degenerates less with skips, as if it were damped",
        where="section 3",
        figure="mechanism",
    ),
    Claim(
        key="damping",
        text="skips and damping do the same work",
        where="section 5",
        figure="damping",
    ),
    Claim(
        key="convexity",
        text="skips make the loss less non-convex",
        where="sections 1 and 3",
        figure="convexity",
    ),
)
