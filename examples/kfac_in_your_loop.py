"""K-FAC in an ordinary training loop: only the line that makes the optimizer differs.

Prints the test accuracy after each epoch for Adam and for K-FAC from the same initialisation.
"""

import torch
from torch import nn

from kobai import seeds
from kobai.data import load
from kobai.models import MLPConfig, build
from kobai.optim import KFAC


def main(epochs: int = 5) -> dict[str, float]:
    data = load("digits")
    (x, y), (xt, yt) = data.train, data.test
    loss_function, final = nn.CrossEntropyLoss(), {}
    for name in ("adam", "kfac"):
        model = build(
            MLPConfig(widths=(128,)),
            input_shape=data.input_shape,
            num_outputs=data.output_size,
            generator=seeds.generator(0, "init"),
        )
        if name == "adam":
            optimizer = torch.optim.Adam(model.parameters())
        else:
            optimizer = KFAC(model, loss_function)  # the likelihood is read off the loss
        shuffle = seeds.generator(0, "shuffle")
        for epoch in range(epochs):
            for index in torch.randperm(len(x), generator=shuffle).split(256):
                optimizer.zero_grad()
                loss_function(model(x[index]), y[index]).backward()
                optimizer.step()
            final[name] = (model(xt).argmax(1) == yt).float().mean().item()
            print(f"{name} epoch {epoch + 1}: test accuracy {100 * final[name]:.1f} %")
    return final


if __name__ == "__main__":
    main()
