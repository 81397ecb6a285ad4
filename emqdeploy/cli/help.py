"""Help in plain text: what loads the package that draws boxes takes longer than the rest of the help."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

ALL = "--help-all"
_SCREENS = 47
"""Lines of two screens of 24, less the prompt."""

_MARKUP = re.compile(r"\[/?(?:bold|dim)\]")
_COMMON = ("Arguments", "Options")
_COLUMN = 24
"""Where the sentences begin, behind the flags."""

_LETTERS = {"int": "N", "float": "X", "path": "PATH"}


class Helpful(TyperCommand):
    """A command whose help fits two screens: of the groups behind the first that do not, only the names are listed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Answers ``--help-all`` whatever else is there."""
        if ALL in args:
            print("\n".join(self._lines(ctx, 10**6)))
            ctx.exit()
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        """The short form."""
        return "\n".join(self._lines(ctx, _SCREENS))

    def _lines(self, ctx: Any, most: int) -> list[str]:
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        head = [*formatter.getvalue().rstrip().splitlines(), "", *_prose(self.help or "", formatter.width)]
        groups: dict[str, list[Any]] = {}
        params: Sequence[Any] = self.get_params(ctx)
        for one in params:
            if not getattr(one, "hidden", False):
                panel = "Arguments" if one.param_type_name == "argument" else one.rich_help_panel or "Options"
                groups.setdefault(panel, []).append(one)
        whole = {name: ["", name, *_listed(params, formatter.width)] for name, params in groups.items()}
        _, *more = [name for name in groups if name not in _COMMON] or [""]
        cut: list[str] = []
        while more and len(head) + sum(len(lines) for name, lines in whole.items() if name not in cut) > most:
            cut.insert(0, more.pop())
        if cut:
            whole = {name: ["", name, *_listed(params, formatter.width, 1)] for name, params in groups.items()}
        lines = head + [line for name in groups if name not in cut for line in whole[name]]
        if cut:
            lines += ["", f"More options, described by {ctx.command_path} {ALL}"]
            lines += _named({name: groups[name] for name in cut}, formatter.width)
        return lines


def _prose(text: str, width: int) -> Iterator[str]:
    """A docstring: paragraphs are filled, commands stay one line each, and close together."""
    together = True
    for paragraph in re.split(r"\n\s*\n", _MARKUP.sub("", text).strip("\n")):
        sentence = [line for line in paragraph.splitlines() if not line.startswith(" ")]
        commands = [line for line in paragraph.splitlines() if line.startswith(" ")]
        if sentence:
            yield from [] if together else [""]
            yield from textwrap.wrap(" ".join(sentence), width)
        for line in commands:
            yield from _command(line.rstrip(), width)
        together = not commands and len(paragraph) < _COLUMN  # a heading


def _command(line: str, width: int) -> Iterator[str]:
    """A command or a definition; a long one goes on in the next line, and a command can still be copied."""
    command, _, comment = line.partition("#")
    if len(line) <= width:
        yield line
        return
    indent = re.match(r" *\S+ {2,}", line)
    if indent is not None and not comment:
        yield from textwrap.wrap(line, width, subsequent_indent=" " * indent.end(), break_on_hyphens=False)
        return
    if comment:
        yield f"  #{comment}"
    parts = [""]
    for piece in re.split(r" (?=-)", command.rstrip()):
        if len(parts[-1]) + len(piece) > width - 2:
            parts.append("     ")
        parts[-1] += f" {piece}" if parts[-1] else piece
    yield from (f"{part} \\" for part in parts[:-1])
    yield parts[-1]


def _listed(params: Sequence[Any], width: int, most: int | None = None) -> Iterator[str]:
    """Flags on the left, sentences on the right, whole ones or their first lines."""
    for one in params:
        name, gap = f"  {_flags(one)}", " " * _COLUMN
        shape: dict[str, Any] = {"max_lines": most, "placeholder": " ...", "break_on_hyphens": False}
        words = textwrap.wrap(_sentence(one), max(width - _COLUMN, 30), **shape) or [""]
        if len(name) > _COLUMN - 2:
            yield name
            name = ""
        yield f"{name:<{_COLUMN}}{words[0]}".rstrip()
        yield from (gap + line for line in words[1:])


def _named(groups: Mapping[str, Sequence[Any]], width: int) -> list[str]:
    """The names of all flags, group by group, in one paragraph: a line of its own for each would be a third more."""
    text = "; ".join(f"{group}: {' '.join(one.opts[0] for one in params)}" for group, params in groups.items())
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _flags(one: Any) -> str:
    if one.param_type_name == "argument":
        return str(one.metavar or one.name.upper()) + ("..." if one.nargs == -1 else "")
    flags = ", ".join([*sorted(one.opts, key=len), *one.secondary_opts])
    if getattr(one, "is_flag", False) or one.is_eager:
        return flags
    # The parser comes with typer since its 0.27, and tells types in other words.
    kind = one.type.name if hasattr(one, "type") else one.type_descriptor.annotation.__name__
    letter = next((short for long, short in _LETTERS.items() if kind.lower().startswith(long)), "TEXT")
    return f"{flags} {one.metavar or letter}"


def _sentence(one: Any) -> str:
    text = _MARKUP.sub("", one.help or "")
    shown = getattr(one, "show_default", False) and one.default not in (None, False, ()) and not callable(one.default)
    return f"{text} [default: {one.default}]" if shown else text
