"""The expressions of Milvus, as far as a filter becomes one: read by a grammar of our own, and answered for an item.

It shares no code with what writes them. Words and literals are those of Milvus' Plan.g4; text is unescaped as Milvus
does it, like Go, or as Lite does it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Value = str | float | bool
Answer = Callable[[Mapping[str, Any]], bool]

WORDS = re.compile(
    r"""(?P<space>[ ])
      | attributes\[(?P<path>"(?:[^"\\\r\n]|\\[^\r\n])*")\]
      | (?P<text>"(?:[^"\\\r\n]|\\[^\r\n])*")
      | (?P<number>-?[0-9]+\.[0-9]+(?:e[+-][0-9]+)?|-?[0-9]+e[+-][0-9]+)
      | (?P<word>[a-z_]+)
      | (?P<sign>==|!=|<=|>=|[<>()\[\],])""",
    re.VERBOSE,
)
ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\\"'])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.S
)
SINGLE = dict(zip("abfnrtv\\\"'", "\a\b\f\n\r\t\v\\\"'", strict=True))
LITE = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}


class UnreadableError(ValueError):
    """Not of the language."""


@dataclass
class Told:
    """What an expression says: its literals in their order, those that are paths and those of `_f` apart."""

    values: list[Value] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def unescaped(literal: str) -> str:
    """As Go's strconv.Unquote reads it."""

    def one(found: re.Match[str]) -> str:
        single, octal, byte, four, eight, other = found.groups()
        if other is not None:
            raise UnreadableError(f"unknown escape in {literal!r}")
        if single is not None:
            return SINGLE[single]
        code = int(octal, 8) if octal else int(byte or four or eight, 16)
        if 0xD800 <= code < 0xE000 or code > (0x10FFFF if four or eight else 0x7F):
            raise UnreadableError(f"no character: {literal!r}")
        return chr(code)

    return ESCAPE.sub(one, literal[1:-1])


def lite_unescaped(literal: str) -> str:
    """As Lite reads it: five escapes; it would keep the backslash of any other."""
    return re.sub(r"\\(.)", lambda found: LITE.get(found[1], found[0]), literal[1:-1], flags=re.S)


class Reader:
    """One expression, from left to right. `answer` is what it says of an item's stored JSON, `told` what is in it.

    Of a value of another type than it compares with, Milvus says no, but to `!=` and `not in`. A lax one says yes to
    anything: Lite does to some, and no filter may rely on which.
    """

    def __init__(self, expression: str, *, lite: bool) -> None:
        self.told = Told()
        self._lax, self._text = lite, lite_unescaped if lite else unescaped
        self._words: list[tuple[str, str]] = []
        at = 0
        while at < len(expression):
            found = WORDS.match(expression, at)
            if found is None:
                raise UnreadableError(f"unreadable at {at}: {expression[at : at + 40]!r}")
            at, kind = found.end(), str(found.lastgroup)
            if kind != "space":
                self._words.append((kind, found[kind]))
        self._words.reverse()
        self.answer = self._any_of()
        if self._words:
            raise UnreadableError(f"goes on after its end: {self._words[::-1]}")

    def _peek(self) -> tuple[str, str]:
        return self._words[-1] if self._words else ("end", "")

    def _take(self, *possible: str) -> str:
        kind, word = self._peek()
        if word not in possible or kind not in {"word", "sign"}:
            raise UnreadableError(f"{word!r} where one of {possible} must be")
        self._words.pop()
        return word

    def _is(self, word: str) -> bool:
        return self._peek() in {("word", word), ("sign", word)}

    def _any_of(self) -> Answer:
        parts = [self._all_of()]
        while self._is("or"):
            self._take("or")
            parts.append(self._all_of())
        return lambda stored: any(part(stored) for part in parts)

    def _all_of(self) -> Answer:
        parts = [self._one()]
        while self._is("and"):
            self._take("and")
            parts.append(self._one())
        return lambda stored: all(part(stored) for part in parts)

    def _one(self) -> Answer:
        if self._is("("):
            self._take("(")
            inside = self._any_of()
            self._take(")")
            return inside
        if self._peek()[0] == "word":
            return self._contains(self._take("json_contains", "json_contains_any"))
        return self._compares()

    def _contains(self, function: str) -> Answer:
        self._take("(")
        path = self._path()
        self._take(",")
        wanted = self._list(path) if function == "json_contains_any" else [self._literal(path)]
        self._take(")")

        def answer(stored: Mapping[str, Any]) -> bool:
            elements = stored.get(path)
            if not isinstance(elements, list):
                return self._lax and path != "_f"
            return any(same_type(element, each) and element == each for element in elements for each in wanted)

        return answer

    def _compares(self) -> Answer:
        path = self._path()
        operator = self._take("==", "!=", "<", "<=", ">", ">=", "in", "not")
        if operator == "not":
            self._take("in")
        values = self._list(path) if operator in {"in", "not"} else [self._literal(path)]

        def answer(stored: Mapping[str, Any]) -> bool:
            had = stored.get(path)
            if not any(same_type(had, value) for value in values):
                return self._lax or operator in {"!=", "not"}
            if operator in {"==", "in", "!=", "not"}:
                found = any(same_type(had, value) and _number(had) == _number(value) for value in values)
                return found == (operator in {"==", "in"})
            than, equal = _number(had) < _number(values[0]), _number(had) == _number(values[0])
            return {"<": than, "<=": than or equal, ">": not (than or equal), ">=": not than}[operator]

        return answer

    def _path(self) -> str:
        kind, word = self._peek()
        if kind != "path":
            raise UnreadableError(f"{word!r} where a path must be")
        self._words.pop()
        path = self._text(word)
        if path != "_f":
            self.told.paths.append(path)
        return path

    def _list(self, path: str) -> list[Value]:
        self._take("[")
        values = [self._literal(path)]
        while self._take(",", "]") == ",":
            values.append(self._literal(path))
        return values

    def _literal(self, path: str) -> Value:
        kind, word = self._words.pop() if self._words else ("end", "")
        value: Value
        if kind == "text":
            value = self._text(word)
        elif kind == "number":
            value = float(word)
        elif kind == "word" and word in {"true", "false"}:
            value = word == "true"
        else:
            raise UnreadableError(f"{word!r} where a literal must be")
        if path == "_f":
            self.told.tags.append(str(value))
        else:
            self.told.values.append(value)
        return value


def same_type(stored: Any, literal: Value) -> bool:
    """Whether both are text, both numbers or both booleans."""
    if isinstance(stored, bool) or isinstance(literal, bool):
        return isinstance(stored, bool) and isinstance(literal, bool)
    if isinstance(literal, str):
        return isinstance(stored, str)
    return isinstance(stored, int | float)


def _number(value: Any) -> Any:
    """Numbers are compared as floats of 64 bits; text and booleans as they are."""
    return value if isinstance(value, bool | str) else float(value)
