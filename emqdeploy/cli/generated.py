"""Commands whose flags are the options of dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from emqdeploy.cli.completing import completion
from emqdeploy.options import Option, options_of


def with_options(*classes: type, with_off: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for every option of some dataclasses; it receives them as keyword arguments.

    A flag that was not given is None, so that the default stays where it is declared; `emqdeploy.options.from_flags`
    makes fields of what was given.

    Args:
        *classes: the dataclasses.
        with_off: whether every switch also has a ``--no-`` form, for what a file may have switched on.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        own = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {parameter.name for parameter in own}
        added = [_parameter(one, with_off) for one in options_of(*classes) if one.argument not in taken]
        positional = [one for one in own if one.kind is not inspect.Parameter.KEYWORD_ONLY]
        named = [one for one in own if one.kind is inspect.Parameter.KEYWORD_ONLY]
        parameters = [*positional, *added, *named]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _parameter(one: Option, with_off: bool) -> inspect.Parameter:
    off = f"/--no-{one.flag}" if one.kind is bool and (one.default or with_off) else ""
    least: dict[str, Any] = {} if one.least is None or one.kind not in (int, float) else {"min": one.kind(one.least)}
    shown = typer.Option(
        f"--{one.flag}{off}",
        *(f"--{name}" for name in one.also),
        help=one.help + _shown(one.default),
        show_default=False,
        rich_help_panel=one.panel,
        autocompletion=completion(one.flag),
        **least,
    )
    annotation = Annotated[one.kind | None, shown]  # type: ignore[name-defined]
    return inspect.Parameter(one.argument, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _shown(default: Any) -> str:
    """The default as the help shows it: the parser sees none, because what was not given stays None."""
    if default is None or default == () or default is False:
        return ""
    text = ",".join(map(str, default)) if isinstance(default, tuple) else "on" if default is True else str(default)
    return f" [default: {text}]"
