"""`kobai gallery`: a guided tour of optimization, one page a section, as an HTML book."""

from kobai.cli import reproduce
from kobai.cli.options import UsageError
from kobai.reproductions import deep_learning_book

_PROG = "kobai gallery"
_HELP = f"""usage: {_PROG} [--section 8.6,…|all] [--quick] [--model …] [--data …]
       and the other flags of kobai reproduce deep-learning-book

Make an HTML book to the chapter on optimization for deep models: every difficulty, algorithm and
strategy, from computations. Finished pages in the folder are kept with --resume.

  --section   sections, separated by commas: 8.6 means all its pages (default all)
  --quick     small settings, under two minutes on two cores
  --model     network of the pages that train just any one (marked * below): mlp, cnn, … or
              package.module:factory; the other pages say why they keep their own
  --data      data of the pages that train a network: digits, mnist, folder:PATH, PATH.npz, …
  --out       folder to write (default runs/gallery); the book is index.html in it

pages:
"""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    if any(word in ("-h", "--help") for word in arguments):
        print(_HELP + "\n".join(map(_listed, deep_learning_book.PAGES)))
        return 0
    return reproduce.main(["deep-learning-book", *translated(arguments)], command)


def _listed(page: deep_learning_book.Page) -> str:
    return f"  {page.name:7s} {page.title}{'' if page.own_network else ' *'}"


def translated(arguments: list[str]) -> list[str]:
    """The flags of `kobai reproduce deep-learning-book` that say the same.

    Raises:
        UsageError: If --section has no value.
        ValueError: If a section has no page.
    """
    found: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--quick":
            found += ["--scale", "quick"]
        elif word == "--section" or word.startswith("--section="):
            value = word.partition("=")[2] if "=" in word else next(rest, "")
            if not value:
                raise UsageError("--section wants a section, such as 8.6")
            found += ["--figure", deep_learning_book.named_by(value)]
        else:
            found.append(word)
    if not any(word == "--out" or word.startswith("--out=") for word in found):
        found += ["--out", "runs/gallery"]
    return found
