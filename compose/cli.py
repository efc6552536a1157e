"""The `sluiceway` command: binds each subcommand to its module and turns known errors into clear messages."""

from __future__ import annotations

import sys

import typer

from compose.commands.bench import bench
from compose.commands.clean import clean
from compose.commands.converter import converter
from compose.commands.demo import demo
from compose.commands.dlq import dlq
from compose.commands.gateway import gateway
from compose.commands.replay_log import replay_log
from compose.commands.send_audio import send_audio
from compose.commands.settings import settings
from compose.commands.status import status
from compose.commands.up import up
from compose.commands.validate import validate
from compose.commands.worker import worker
from compose.settings import SettingError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="An event-sourced stream processor.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Sluiceway: Kafka in, exact rollups in ClickHouse and objects in R2 out."""


for command in (up, gateway, worker, converter, replay_log, send_audio, validate, demo, status, clean, settings):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(dlq, name="dlq")


def main() -> None:
    """Entry point of the console script; exit code 2 for a wrong setting."""
    try:
        app()
    except SettingError as error:
        print(f"sluiceway: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
