"""Trials trained together against the same trials one by one: CPU seconds a trial, in one run.

    OMP_NUM_THREADS=1 KOBAI_DATA=... python benchmarks/trials.py --networks linear relu

MNIST, 784-100×5-10. Times hold training and the evaluations before and after it, as in a study.
"""

import argparse
import time

import torch

from kobai import data, models, optim
from kobai.studies import Setting, StudyTraining, Task, run_trial, run_trials
from kobai.training import LinearDecay

WIDTHS = (100,) * 5
NETWORKS = {
    "linear": ("linear", models.FAMILIES["linear"](widths=WIDTHS)),
    "relu": ("mlp", models.FAMILIES["mlp"](widths=WIDTHS)),
}


def work(network: str, optimizer: str, batch: int, epochs: float) -> Task:
    family, options = NETWORKS[network]
    numbers = {"lr": 0.01, "damping": 0.01} if optimizer == "kfac" else {}
    return Task(
        setting=Setting(splits=data.load("mnist"), model=family, model_options=options),
        optimizer=optimizer,
        config=optim.CONFIGS[optimizer](**numbers),
        schedule=LinearDecay(),
        training=StudyTraining(
            epochs=epochs, batch_size=batch, evaluate_every=epochs, evaluate_train_limit=None
        ),
        seeds=(0,),
        metric="train_accuracy",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="+", default=["momentum", "kfac"])
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 8192])
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = [{"lr": 0.003 * (i + 1), "momentum": 0.5} for i in range(options.together)]
    print(f"{'':26}{'alone':>9}{'together':>9}{'factor':>8}   seconds a trial")
    for network in options.networks:
        for optimizer in options.optimizers:
            for batch in options.batches:
                task = work(network, optimizer, batch, options.epochs)
                run_trial(task, values[0])  # the first run pays for what torch sets up
                began = time.process_time()
                run_trials(task, values)
                middle = time.process_time()
                run_trial(task, values[0])
                alone = time.process_time() - middle
                each = (middle - began) / len(values)
                print(
                    f"{network:8}{optimizer:10}{batch:8}{alone:9.2f}{each:9.2f}{alone / each:8.1f}"
                )


if __name__ == "__main__":
    main()
