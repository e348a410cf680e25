"""`kobai train`: one run with checkpoints."""

from rich.console import Console

from kobai import report
from kobai.cli.figures import write_figures
from kobai.cli.options import TrainOptions, optimizer_field, optimizer_names, parse
from kobai.cli.problem import make_batch_schedule, make_schedule, make_setting
from kobai.cli.run_folder import Clock, Stop, claim, interrupted, record
from kobai.cli.tables import to_json
from kobai.cli.training.compare import rehearse
from kobai.results import history_to_csv
from kobai.studies import RunSpec, train_run
from kobai.training import ConsoleProgress


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = parse(TrainOptions, arguments, verb="train")
    clock, console = Clock(), Console(stderr=True, emoji=False)
    setting = make_setting(options)
    (name,) = optimizer_names(options.optimizer)
    spec = RunSpec(
        optimizer=name, config=getattr(options, optimizer_field(name)), seed=options.seed
    )
    rehearse(setting, [spec], options)
    folder = claim(options, "train")
    with Stop().installed() as stop, ConsoleProgress() as progress:
        history = train_run(
            setting,
            spec,
            options.training,
            folder,
            schedule=make_schedule(options),
            batch_schedule=make_batch_schedule(options),
            resume=options.resume,
            progress=progress,
            stop=stop,
        )
    history_to_csv([history], folder / "metrics.csv")
    record(
        folder, command=command, seed=options.seed, device=setting.device, seconds=clock.seconds()
    )
    if history.status == "interrupted":
        return interrupted(console, f"the run is in {folder}", command)
    write_figures(folder)
    page = report.build(folder)
    if options.json:
        print(to_json(history))
    else:
        test = history.test_accuracy[-1]
        print(
            f"{history.label}: {history.status} after {history.step[-1]} steps, "
            f"train loss {history.train_loss[-1]:.4g}, test loss {history.test_loss[-1]:.4g}"
            + (f", test accuracy {100 * test:.2f} %" if test == test else "")
        )
    if history.note:
        console.print(history.note)
    console.print(f"report: {page}")
    return 0
