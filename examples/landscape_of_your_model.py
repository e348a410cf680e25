"""The loss surface around a trained model of your own, with the proof that it is right.

Writes landscape.png and prints the self-checks.
"""

from pathlib import Path

import torch
from torch import nn

from kobai import Problem, plots, seeds
from kobai.data import load
from kobai.landscape import evaluate_plane, raise_if_failed, random_directions
from kobai.training import train


def main(folder: Path = Path()) -> Path:
    data = load("spirals")
    layers = [nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)]
    model = nn.Sequential(*layers)
    problem = Problem(model, nn.CrossEntropyLoss(), train=data.train, test=data.test)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(problem, optimizer, epochs=100, generator=seeds.generator(0, "shuffle"))
    model.eval()
    objective = problem.objective()
    directions = random_directions(objective, generator=seeds.generator(0, "directions"))
    plane = evaluate_plane(objective, directions, a=21, b=21)
    for check in plane.checks:
        print("passed" if check.passed else "FAILED", check.name, check.detail)
    raise_if_failed(plane.checks)
    return plots.save(plots.landscape_contour(plane), folder, "landscape")[0]


if __name__ == "__main__":
    print(main())
