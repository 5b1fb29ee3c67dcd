"""JSON Schemas as the backends can keep them: every instance of what comes out is an instance of what went in.

Backends ignore some keywords, and some that stand beside others. What would let an output through that is no instance
is refused by its name; some of it can be said in other words, and is. An object that names its properties and says
nothing of others has no others: that narrows it, and keeps small models from going on for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from pawl.gpu.grammars.base import GrammarRefused
from pawl.gpu.grammars.schema_numbers import reworded_numbers
from pawl.gpu.grammars.schema_words import misstated

Schema: TypeAlias = "dict[str, Any] | bool"

MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_COMPARISONS = 200_000
"""Of values and names, to tell the schemas of a oneOf apart."""
TOO_LARGE = f"the json_schema is too large: {MAX_DEPTH} levels, {MAX_NODES} schemas are allowed"
UNSUPPORTED = (
    *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
    *("$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
)
"""Keywords that no backend keeps."""
COMBINING = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
"""Keywords beside which xgrammar looks at no other."""
ASSERTING = frozenset(
    (
        *("type", "enum", "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"),
        *("maxLength", "minLength", "pattern", "format", "items", "prefixItems", "maxItems", "minItems"),
        *("properties", "required", "patternProperties", "additionalProperties", "propertyNames"),
        *("minProperties", "maxProperties", "anyOf", "oneOf", "allOf", "$ref"),
    )
)
"""Keywords that say what is an instance."""
FORMATS = frozenset(("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration"))
"""Those that are kept to; others are notes, as the specification has it."""
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_CHARACTER = r"""[^"\\\x00-\x1f]"""
"""One character of a string that needs no escape, which xgrammar does not write in patterns. It lets control characters
through where lengths are given."""
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DATE = (
    f"{_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](\.[0-9]{{1,9}})?(Z|[+-]{_HOUR})"
PATTERNS = {
    "ipv4": rf"^{_BYTE}(\.{_BYTE}){{3}}$",
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
}
"""Formats of which a library lets through what is none. No leap days, which would take a list of years, and
no year 0, which many calendars do not have."""
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def prepared(text: str, *, merges: bool) -> str:
    """The schema in words that a backend keeps. `merges`: it looks at all keywords of a schema together, as llguidance
    does. Raises GrammarRefused, with the keyword."""
    try:
        return msgspec.json.encode(prepared_schema(msgspec.json.decode(text), merges=merges)).decode()
    except RecursionError:
        raise GrammarRefused(TOO_LARGE) from None


def prepared_schema(schema: Any, *, merges: bool) -> Any:
    """The same of a decoded schema."""
    return _Preparing(schema, merges).node(schema, "$", 0)


def prepared_tag(value: Any, *, merges: bool) -> Any:
    """A structural tag, with all schemas in it prepared."""
    if isinstance(value, list):
        return [prepared_tag(one, merges=merges) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "json_schema" and "json_schema" in value:
        return value | {"json_schema": prepared_schema(value["json_schema"], merges=merges)}
    return {name: prepared_tag(one, merges=merges) for name, one in value.items()}


class _Preparing:
    def __init__(self, root: Any, merges: bool) -> None:
        self._root = root
        self._merges = merges
        self._num_nodes = 0
        self._num_comparisons = 0

    def node(self, schema: Any, where: str, depth: int, *, closes: bool = True) -> Any:
        """One schema, and those inside. `closes`: an object that names its properties has no others."""
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            raise GrammarRefused(TOO_LARGE)
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            if schema is False:
                return False
            raise GrammarRefused(f"the json_schema is not valid: {where} is no schema")
        if wrong := misstated(schema):
            raise GrammarRefused(f"the json_schema is not valid: {wrong} (at {where})")
        made = reworded_numbers(schema, where, merges=self._merges)
        self._check(made, where)
        self._reword_strings(made)
        self._reword_arrays(made)
        self._reword_objects(made, where, closes=closes)
        self._reword_values(made, where)

        def inner(name: str, one: Any, place: str) -> Any:
            # Of several parts of one object, each would forbid what the others name.
            return self.node(one, f"{where}.{place}", depth + 1, closes=name != "allOf")

        return {name: _prepared_inside(name, value, inner) for name, value in made.items()}

    def _check(self, schema: Mapping[str, Any], where: str) -> None:
        """Raises GrammarRefused for what cannot be kept."""
        for name in UNSUPPORTED:
            if name in schema and schema[name] is not False:
                raise _unsupported(name, where)
        reference = schema.get("$ref")
        if reference is not None and not (isinstance(reference, str) and (reference == "#" or reference[:2] == "#/")):
            raise _unsupported("$ref to another document or an anchor", where)
        pattern = schema.get("pattern")
        if pattern is not None and not self._merges:
            if "minLength" in schema or "maxLength" in schema:
                raise _unsupported("pattern together with minLength or maxLength", where)
            if isinstance(pattern, str) and ('"' in pattern or r"\\" in pattern):
                # They would have to be escaped in the output, and are not.
                raise _unsupported("pattern with a quotation mark or a backslash", where)
        names = schema.get("patternProperties")
        if isinstance(names, dict) and not self._merges and any('"' in name or r"\\" in name for name in names):
            raise _unsupported("patternProperties with a quotation mark or a backslash", where)
        closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
        if schema.get("minProperties", 0) and not closed:
            raise _unsupported("minProperties without additionalProperties: false", where)
        if self._merges:
            self._check_merged(schema, where)
        if "oneOf" in schema and not self._apart(schema["oneOf"]):
            raise _unsupported("oneOf of schemas that neither their types nor constants tell apart", where)
        if not self._merges:
            self._check_alone(schema, where)

    def _check_merged(self, schema: Mapping[str, Any], where: str) -> None:
        """llguidance allows a whole number that is excluded where the other bound is near."""
        low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        least, most = schema.get("minimum", low), schema.get("maximum", high)
        exclusive = [bound for bound in (low, high) if isinstance(bound, int | float) and bound == int(bound)]
        close = all(isinstance(bound, int | float) for bound in (least, most)) and most - least < 1
        if exclusive and close and schema.get("type") != "integer":
            raise _unsupported("exclusiveMinimum or exclusiveMaximum of numbers less than 1 apart", where)

    def _check_alone(self, schema: Mapping[str, Any], where: str) -> None:
        asserting = [name for name in schema if name in ASSERTING]
        combining = next((name for name in COMBINING if name in schema), None)
        beside = [name for name in asserting if name != combining and not (name == "type" and combining in _VALUES)]
        if combining is not None and beside:
            raise _unsupported(f"{combining} together with {beside[0]}", where)
        if len(schema.get("allOf", ())) > 1:
            raise _unsupported("allOf of several schemas", where)
        if "multipleOf" in schema and not (schema.get("type") == "integer" and isinstance(schema["multipleOf"], int)):
            raise _unsupported("multipleOf of numbers that need not be whole", where)
        if schema.get("format") in FORMATS and (others := schema.keys() & {"pattern", "minLength", "maxLength"}):
            raise _unsupported(f"format together with {min(others)}", where)

    # ---- in other words ----

    def _reword_strings(self, made: dict[str, Any]) -> None:
        if not self._merges and ("minLength" in made or "maxLength" in made):
            least, most = made.pop("minLength", 0), made.pop("maxLength", "")
            made["pattern"] = f"^{_CHARACTER}{{{least},{most}}}$"
        elif not self._merges and isinstance(pattern := made.get("pattern"), str):
            made["pattern"] = _whole(pattern)
        name = made.get("format")
        if name is None:
            return
        if name not in FORMATS:
            del made["format"]
        elif name in PATTERNS and "pattern" not in made:
            del made["format"]
            made["pattern"] = PATTERNS[name] if self._merges else _whole(PATTERNS[name])

    def _reword_arrays(self, made: dict[str, Any]) -> None:
        """Tuples as older drafts wrote them."""
        if isinstance(made.get("items"), list):
            made["prefixItems"] = made.pop("items")
            if "additionalItems" in made:
                made["items"] = made["additionalItems"]
        made.pop("additionalItems", None)

    def _reword_objects(self, made: dict[str, Any], where: str, *, closes: bool) -> None:
        if isinstance(patterns := made.get("patternProperties"), dict) and not self._merges:
            made["patternProperties"] = {_whole(pattern): one for pattern, one in patterns.items()}
        properties = made.get("properties")
        others = made.get("additionalProperties", True)
        missing = [name for name in made.get("required", ()) if name not in (properties or {})]
        if missing and "patternProperties" not in made and others is False and made.get("type") == "object":
            text = f"the json_schema has no instance: {missing[0]!r} is required, and may not be there (at {where})"
            raise GrammarRefused(text)
        if missing and "patternProperties" not in made and others is not False:
            made["properties"] = properties = {**(properties or {}), **dict.fromkeys(missing, others)}
            made.setdefault("type", "object")
        open_ended = ("additionalProperties", "patternProperties", *COMBINING[:4])
        if closes and properties and not any(name in made for name in open_ended):
            made["additionalProperties"] = False

    def _reword_values(self, made: dict[str, Any], where: str) -> None:
        """Values of other types than the schema's are none of its."""
        kinds = made.get("type")
        if kinds is None:
            return
        allowed = kinds if isinstance(kinds, list) else [kinds]
        for name in _VALUES:
            if name in made:
                values = made[name] if name == "enum" else [made[name]]
                kept = [value for value in values if any(_is_a(value, kind) for kind in allowed)]
                if not kept:
                    raise GrammarRefused(f"the json_schema has no instance: {name} has none of its type (at {where})")
                made[name] = kept if name == "enum" else kept[0]
                del made["type"]
                return

    # ---- oneOf ----

    def _apart(self, branches: Any) -> bool:
        """Whether no value is an instance of two of these schemas, as far as types and constants show."""
        if not isinstance(branches, list):
            return True
        self._compares(len(branches) ** 2 // 2)
        found = [self._resolved(branch) for branch in branches]
        pairs = ((one, other) for index, one in enumerate(found) for other in found[:index])
        return all(self._distinct(one, other) or self._distinct_members(one, other) for one, other in pairs)

    def _compares(self, count: int) -> None:
        """Raises GrammarRefused when there is too much to compare."""
        self._num_comparisons += count
        if self._num_comparisons > MAX_COMPARISONS:
            raise GrammarRefused("the json_schema is too large: the schemas of oneOf cannot be told apart in time")

    def _distinct(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        values = [_values(schema) for schema in (one, other)]
        if values[0] is not None and values[1] is not None:
            self._compares(len(values[0]) * len(values[1]))
            return not any(value in values[1] for value in values[0])
        kinds = [_kinds(schema) for schema in (one, other)]
        return bool(kinds[0] and kinds[1]) and not kinds[0] & kinds[1]

    def _distinct_members(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether a property that both require has other values in each."""
        if one.get("type") != "object" or other.get("type") != "object":
            return False
        self._compares(len(one.get("required", ())) + len(other.get("required", ())))
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        members = ((one.get("properties", {}).get(name), other.get("properties", {}).get(name)) for name in shared)
        return any(self._distinct(self._resolved(a), self._resolved(b)) for a, b in members)

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict):
                return {}
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            found = self._root
            for part in reference.removeprefix("#").split("/")[1:]:
                found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
            schema = found
        return {}


_VALUES = ("enum", "const")


def _unsupported(what: str, where: str) -> GrammarRefused:
    return GrammarRefused(f"{what} is not supported in a json_schema (at {where[:200]})")


def _prepared_inside(keyword: str, value: Any, prepared: Callable[[str, Any, str], Any]) -> Any:
    """The value of a keyword with each schema in it made anew, of (keyword, schema, place)."""
    if keyword in ("items", "additionalProperties", "propertyNames"):
        return prepared(keyword, value, keyword)
    if keyword in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
        return {key: prepared(keyword, one, f"{keyword}.{key}") for key, one in value.items()}
    if keyword in ("prefixItems", "anyOf", "oneOf", "allOf") and isinstance(value, list):
        return [prepared(keyword, one, f"{keyword}.{index}") for index, one in enumerate(value)]
    return value


def _whole(pattern: str) -> str:
    """A pattern as xgrammar keeps it. It takes every pattern for the whole of a text; one with alternatives stays so,
    which is narrower. Of something optional that ends in a repetition it also allows what is repeated alone, unless
    the question mark is written as a count."""
    counted = _OPTIONAL.sub(lambda found: "{0,1}" if found[0] == "?" else found[0], pattern)
    if "|" in pattern:
        return counted
    before = "" if pattern.startswith("^") else f"^{_CHARACTER}*"
    ends = pattern.endswith("$") and not pattern.endswith(r"\$")
    return f"{before}{counted}{'' if ends else f'{_CHARACTER}*$'}"


_OPTIONAL = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?|[*+?}]\?|\?", re.DOTALL)
"""A question mark that makes something optional, or what holds one that does not."""


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """Types of its instances; empty: any."""
    kinds = schema.get("type")
    named = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
    if not named and (values := _values(schema)) is not None:
        named = {kind for value in values for kind in _TYPES if _is_a(value, kind)}
    return {"number" if kind == "integer" else kind for kind in named}


def _is_a(value: Any, kind: Any) -> bool:
    if kind == "integer":
        return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    if isinstance(value, bool):
        return bool(kind == "boolean")
    return isinstance(value, _TYPES.get(kind, ()))
