"""Flags of the command line, made from the settings and from the table of other engines' flags.

`--help` shows what a command is mostly told, `--help-all` everything that it takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pawl.aliases import ALIASES, TAKEN, VALUES, Alias
from pawl.config import GROUPS, ServerConfig, all_settings, build_config
from pawl.settings import Setting

THEIRS = "flags of SGLang and vLLM"


class Hidden(NamedTuple):
    """What only `--help-all` shows."""

    actions: dict[argparse.Action, str]
    """With their help."""
    sections: dict[argparse._ArgumentGroup, str]
    """With their descriptions."""


def add_flags(
    parser: argparse.ArgumentParser, *, without: frozenset[str] = frozenset(), shown: frozenset[str] | None = None
) -> None:
    """Give `parser` `--config` and a flag for each setting, in their groups. Flags not given leave no value behind.

    Settings in `without` have no flag; `--help` shows those in `shown`, None: all.
    """
    hidden = Hidden({}, {})
    parser.add_argument("--help-all", action=_HelpAll, hidden=hidden, help="every flag, those of SGLang and vLLM too")
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file of settings; flags go over it")
    taken = [setting for setting in all_settings() if setting.name not in without]
    for group, description in GROUPS.items():
        settings = [setting for setting in taken if setting.group == group]
        visible = [setting for setting in settings if shown is None or setting.name in shown]
        section = parser.add_argument_group(group, description if visible else None)
        if not visible:
            hidden.sections[section] = description
        for setting in settings:
            action = _add_flag(section, setting)
            if setting not in visible:
                hidden.actions[action], action.help = action.help or "", argparse.SUPPRESS
    _add_aliases(parser, {setting.name: setting for setting in taken}, hidden)


class _HelpAll(argparse.Action):
    """Shows what is hidden, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, hidden: Hidden, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self._hidden = hidden

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        for action, text in self._hidden.actions.items():
            action.help = text
        for section, description in self._hidden.sections.items():
            section.description = description
        parser.print_help()
        parser.exit()


def _add_flag(section: argparse._ArgumentGroup, setting: Setting) -> argparse.Action:
    text = setting.description
    if setting.default not in (None, ()):
        text += f" (default: {_shown(setting.default)})"
    common: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if setting.kind is bool:
        return section.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **common)
    if setting.choices:
        return section.add_argument(setting.flag, choices=setting.choices, type=_value_of(setting), **common)
    if setting.several:
        common |= _repeated(setting)
    metavar = {int: "N", float: "X", str: "TEXT"}[setting.kind]
    return section.add_argument(setting.flag, type=setting.kind, metavar=metavar, **common)


def _repeated(setting: Setting) -> dict[str, Any]:
    """How a flag is taken that may be given several times."""
    return {"action": "extend", "nargs": "+"} if setting.together else {"action": "append"}


def _value_of(setting: Setting) -> Callable[[str], str]:
    names = VALUES.get(setting.name, {})
    return lambda text: names.get(text, text)


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"


# ---- other engines' flags ----


def _add_aliases(parser: argparse.ArgumentParser, settings: dict[str, Setting], hidden: Hidden) -> None:
    section = parser.add_argument_group(THEIRS)
    hidden.sections[section] = "they do what they do there, or are refused with what to use in their place"
    for alias in ALIASES:
        setting = settings.get(alias.setting)
        if not alias.setting:
            action = section.add_argument(alias.flag, action=_Refused, alias=alias, nargs="?", help=argparse.SUPPRESS)
        elif setting is None:
            continue
        elif alias.value is TAKEN:
            repeated = _repeated(setting) if setting.several else {}
            action = section.add_argument(
                alias.flag,
                dest=setting.name,
                type=_read(alias, setting),
                choices=setting.choices,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
                **repeated,
            )
        else:
            action = section.add_argument(
                alias.flag,
                dest=setting.name,
                action="store_const",
                const=alias.value,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
        meant = f"{alias.of}: {setting.flag if setting else 'refused'}"
        hidden.actions[action] = (f"{meant}; {alias.note}" if alias.note else meant).replace("%", "%%")


def _read(alias: Alias, setting: Setting) -> Callable[[str], Any]:
    read = alias.read or setting.kind

    def value(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value


class _Refused(argparse.Action):
    """A flag that means nothing here."""

    def __init__(self, option_strings: Sequence[str], dest: str, alias: Alias, **rest: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **rest)
        self._alias = alias

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        parser.error(f"{self._alias.flag} of {self._alias.of} is not taken: {self._alias.note}")


# ---- what was given ----


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings among parsed `arguments` that were really given."""
    values = vars(arguments)
    return {setting.name: values[setting.name] for setting in all_settings() if setting.name in values}


def config_from(arguments: argparse.Namespace) -> ServerConfig:
    """The configuration of a command line parsed with `add_flags`. Raises ConfigError."""
    return build_config(given(arguments), getattr(arguments, "config", None))
