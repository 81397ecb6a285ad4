"""Commands whose flags come from other packages: these are imported when the command is used, not for its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from emqdeploy.cli.help import Helpful


def lazily(
    command: Callable[..., None], classes: Callable[[], Sequence[type]], with_off: bool = False
) -> type[Helpful]:
    """Returns the class of a command that has a flag for every option of some dataclasses, see `with_options`.

    Args:
        command: what runs; the one that is registered under its name takes no parameters.
        classes: returns the dataclasses, once the command is used.
        with_off: whether every switch also has a ``--no-`` form, for what a file may have switched on.
    """

    class Lazy(Helpful):
        complete = False

        def get_params(self, ctx: Any) -> list[Any]:
            if not self.complete:
                from emqdeploy.cli.generated import with_options

                alone = typer.Typer(add_completion=False)
                alone.command()(with_options(*classes(), with_off=with_off)(command))
                real = typer.main.get_command(alone)
                self.params, self.callback, self.complete = real.params, real.callback, True
            return super().get_params(ctx)

    return Lazy
