"""``python -m cbm``: everything that is not training or evaluating."""

import sys

import typer

from cbm.commands import banks, datasets, features, predict, runs
from cbm.errors import UserError
from cbm.files.console import set_up_logging
from cbm.files.streams import print_what_can_be

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(datasets.app, name="datasets")
app.add_typer(banks.app, name="concepts")
features.add_to(app)
predict.add_to(app)
runs.add_to(app)


def main() -> None:
    """Run a command; one line and exit status 2 on bad input."""
    if not {"--help", "-h"} & set(sys.argv):
        set_up_logging()
    print_what_can_be()
    try:
        app()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
