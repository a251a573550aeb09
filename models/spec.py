"""features.toml: what the towers see of a user, a request and an item. Checked against itself at load."""

import hashlib
import math
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from schemas.records import MAX_HISTORY_ROWS, MAX_SEEN_ITEMS

Kind = Literal["category", "multi", "number", "bucket", "vector"]
Value = str | bool | int | float | list[str] | None
FilterType = Literal["number", "string", "bool", "strings"]
MAX_CODES = 64
MIN_HALF_LIFE_MS = 60_000
LARGEST = 3e38  # of float32
MAX_WIDTH = 1024  # of an extractor's column
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of files, collections and consumer groups
TYPES = "_f"  # the name under which Milvus keeps which of an item's attributes are there, and of which type
NOT_A_WORD = "a field's name must be a word of letters, digits and underscores"


class SpecError(ValueError):
    """A feature spec that cannot work; one line that names the entry."""


class Field(Struct, frozen=True, forbid_unknown_fields=True):
    """One named value. category: one of a vocabulary; multi: a list of such; number; bucket: a number by its edges."""

    kind: Kind
    edges: tuple[float, ...] = ()  # bucket only: code 1 below the first edge, ..., 0 when missing
    log: bool = False  # number only: log1p of it, for prices and counts


class ContextField(Field, frozen=True, forbid_unknown_fields=True):
    """A value of a request's own context. With `source`, a value that the request lacks is asked of that source."""

    source: str = ""  # a name of the setting `sources`
    default: Value = None  # what a missing value counts as, in serving and in training; none = the field's zero
    required: bool = False  # without it the towers are not asked: the answer is `degraded`


class Vector(Field, frozen=True, forbid_unknown_fields=True):
    """A column of an extractor: `size` numbers. No spec file declares it as a field."""

    size: int = 1


class Extractor(Struct, frozen=True, forbid_unknown_fields=True):
    """Code that makes inputs of the user tower, `NAME_COLUMN`. Other code, or another result, is another version."""

    version: str
    outputs: dict[str, int]  # column -> its width


class Code(Struct, frozen=True, forbid_unknown_fields=True):
    """An action, with a value in [at_least, below) when those are given, and its first weight in the history."""

    action: str
    weight: float = 1.0
    at_least: float | None = None
    below: float | None = None


class History(Struct, frozen=True, forbid_unknown_fields=True):
    """How a user's events are seen."""

    length: int
    codes: tuple[Code, ...]
    time_resolution_ms: int = 1
    session_ms: int = 1_800_000


class Seen(Struct, frozen=True, forbid_unknown_fields=True):
    """Which actions make an item seen (none named = every one), and which of the seen items count for a request."""

    actions: tuple[str, ...] = ()
    window_ms: int = 0  # seen within that time before the request's as-of time; 0 = for ever
    cap: int = MAX_SEEN_ITEMS  # the newest that many

    def since_ms(self, as_of_ms: int) -> int | None:
        """An item last seen before this time no longer counts; None = there is no such time."""
        return as_of_ms - self.window_ms if self.window_ms else None


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """The event that the towers are fitted to foretell."""

    action: str
    at_least: float | None = None


class Popular(Struct, frozen=True, forbid_unknown_fields=True):
    """How popularity is counted: a target event's weight halves every `half_life_ms`; also for each value of a segment.

    `segment` names a profile field of kind category; "" = everybody alone.
    """

    half_life_ms: int = 7 * 86_400_000
    segment: str = ""


class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole feature spec."""

    name: str
    history: History
    target: Target
    seen: Seen = Seen()
    profile: dict[str, Field] = {}
    context: dict[str, ContextField] = {}
    item: dict[str, Field] = {}
    filterable: dict[str, FilterType] = {}
    popular: Popular = Popular()
    extractors: dict[str, Extractor] = {}

    @property
    def seen_actions(self) -> frozenset[str]:
        """Actions that make an item seen; empty = every one."""
        return frozenset(self.seen.actions)

    @property
    def actions(self) -> frozenset[str]:
        """Every action that the spec names; others are kept in the history and have no weight."""
        return frozenset({code.action for code in self.history.codes} | {self.target.action, *self.seen.actions})

    @property
    def sourced(self) -> dict[str, dict[str, ContextField]]:
        """Fields of the context by the source that is asked for them: source -> name -> field."""
        found: dict[str, dict[str, ContextField]] = {}
        for name, field in self.context.items():
            if field.source:
                found.setdefault(field.source, {})[name] = field
        return found

    @property
    def vectors(self) -> dict[str, Vector]:
        """What extractors give: `NAME.COLUMN` -> its width."""
        return {
            f"{name}.{column}": Vector(kind="vector", size=width)
            for name, extractor in self.extractors.items()
            for column, width in extractor.outputs.items()
        }

    @property
    def hash(self) -> str:
        """sha256 over the canonical form: equal for equal meaning, whatever the layout of the file.

        What came later stands in it only where it differs from its default: older bundles keep their hash.
        """
        canonical = msgspec.to_builtins(self, order="deterministic")
        for key in ("window_ms", "cap"):
            if getattr(self.seen, key) == getattr(Seen(), key):
                del canonical["seen"][key]
        if self.popular == Popular():
            del canonical["popular"]
        if not self.extractors:
            del canonical["extractors"]
        plain = ContextField(kind="number")
        for name, field in self.context.items():
            for key in ("source", "default", "required"):
                if getattr(field, key) == getattr(plain, key):
                    del canonical["context"][name][key]
        return hashlib.sha256(msgspec.json.encode(canonical)).hexdigest()


def load_spec(path: Path) -> Spec:
    """Read and check a features.toml. Raises SpecError with one line."""
    try:
        return parse_spec(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8") from error
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def parse_spec(text: str) -> Spec:
    """Check the text of a features.toml. Raises SpecError with one line."""
    try:
        spec = msgspec.convert(tomllib.loads(text), Spec)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SpecError(str(error)) from error
    for mistake in _mistakes(spec):
        raise SpecError(mistake)
    return spec


def builtin_spec(name: str) -> Path:
    """The file of a spec that comes with the package: movielens, marketplace."""
    return Path(__file__).parent / "specs" / f"{name}.toml"


def _mistakes(spec: Spec) -> list[str]:
    found = []
    history = spec.history
    if not NAME.fullmatch(spec.name):
        found.append(f"name is {spec.name!r}, must be 1 to 64 letters, digits, underscores and hyphens")
    if not 1 <= history.length <= MAX_HISTORY_ROWS:
        found.append(f"history.length is {history.length}, a record holds 1 to {MAX_HISTORY_ROWS}")
    if history.time_resolution_ms < 1:
        found.append(f"history.time_resolution_ms is {history.time_resolution_ms}, must be at least 1")
    if history.session_ms < 1:
        found.append(f"history.session_ms is {history.session_ms}, must be at least 1")
    if not 1 <= len(history.codes) <= MAX_CODES:
        found.append(f"history.codes has {len(history.codes)} entries, 1 to {MAX_CODES} are possible")
    if len({(code.action, code.at_least, code.below) for code in history.codes}) < len(history.codes):
        found.append("history.codes names the same action and range twice")
    if not any(code.action == spec.target.action for code in history.codes):
        found.append(f"target.action {spec.target.action!r} has no entry in history.codes")
    for number, code in enumerate(history.codes, 1):
        found += _code_mistakes(f"history.codes, entry {number}", code)
    if spec.target.at_least is not None and not math.isfinite(spec.target.at_least):
        found.append("target.at_least must be a finite number")
    found += _seen_mistakes(spec.seen) + _popular_mistakes(spec)
    found += _all_fields_mistakes(spec) + _extractor_mistakes(spec)
    if TYPES in spec.filterable:
        found.append(f"filterable.{TYPES}: an index keeps the types of the others under that name")
    return found + [f"filterable.{name}: {NOT_A_WORD}" for name in spec.filterable if not name.isidentifier()]


def _all_fields_mistakes(spec: Spec) -> list[str]:
    found = []
    if "code" in spec.item:
        found.append("item.code: the item tower's input item_code is the item's place in the vocabulary")
    for section in ("profile", "context", "item"):
        for name, field in getattr(spec, section).items():
            found += _field_mistakes(f"{section}.{name}", name, field)
    for name, sourced in spec.context.items():
        found += _source_mistakes(f"context.{name}", sourced)
    return found


def _seen_mistakes(seen: Seen) -> list[str]:
    found = []
    if seen.window_ms < 0:
        found.append(f"seen.window_ms is {seen.window_ms}, must be at least 0 (0 = for ever)")
    if not 1 <= seen.cap <= MAX_SEEN_ITEMS:
        found.append(f"seen.cap is {seen.cap}, 1 to {MAX_SEEN_ITEMS} are possible")
    return found


def _popular_mistakes(spec: Spec) -> list[str]:
    found = []
    half_life_ms, segment = spec.popular.half_life_ms, spec.popular.segment
    if half_life_ms < MIN_HALF_LIFE_MS:
        found.append(f"popular.half_life_ms is {half_life_ms}, must be at least {MIN_HALF_LIFE_MS}")
    if segment and (segment not in spec.profile or spec.profile[segment].kind != "category"):
        found.append(f"popular.segment is {segment!r}, must be a field of profile of kind category")
    return found


def _code_mistakes(where: str, code: Code) -> list[str]:
    numbers = [number for number in (code.weight, code.at_least, code.below) if number is not None]
    if not all(math.isfinite(number) for number in numbers):
        return [f"{where}: weight, at_least and below must be finite numbers"]
    if code.at_least is not None and code.below is not None and code.at_least >= code.below:
        return [f"{where}: no value is at least {code.at_least} and below {code.below}"]
    return []


def _field_mistakes(where: str, name: str, field: Field) -> list[str]:
    found = []
    if not name.isidentifier():
        found.append(f"{where}: {NOT_A_WORD}")
    if field.kind == "vector":
        found.append(f"{where}: kind vector is what extractors give, a field is category, multi, number or bucket")
    if (field.kind == "bucket") != bool(field.edges):
        found.append(f"{where}: edges belong to kind bucket, and it needs them")
    if list(field.edges) != sorted(set(field.edges)) or not all(math.isfinite(edge) for edge in field.edges):
        found.append(f"{where}: edges must be finite and rise")
    if field.log and field.kind != "number":
        found.append(f"{where}: log belongs to kind number")
    return found


def _source_mistakes(where: str, field: ContextField) -> list[str]:
    found = []
    if field.source and not NAME.fullmatch(field.source):
        found.append(f"{where}: source is {field.source!r}, must be letters, digits, underscores and hyphens")
    if not field.source and (field.required or field.default is not None):
        found.append(f"{where}: default and required belong to a field with a source")
    if field.default is None:
        return found
    if field.required:
        found.append(f"{where}: a required value has no default")
    if not is_value(field, field.default):
        found.append(f"{where}: default {field.default!r} is no value of kind {field.kind}")
    return found


def is_value(field: Field, value: Any) -> bool:
    """Whether a value is of the type that a field's kind takes: else it counts as missing."""
    if field.kind in {"number", "bucket"}:
        return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    if field.kind == "multi" and isinstance(value, list):
        return all(_is_word(element) for element in value)
    return _is_word(value)


def _is_word(value: Any) -> bool:
    if isinstance(value, int | float):
        return -LARGEST <= value <= LARGEST
    return isinstance(value, str) and value != ""


def _extractor_mistakes(spec: Spec) -> list[str]:
    found = []
    taken = {"history_vectors", "history_codes", "history_age_s", "event_count", "gap_s"}
    for name, extractor in spec.extractors.items():
        where = f"extractors.{name}"
        if not name.isidentifier() or name.partition("_")[0] in {"history", "profile", "context", "item"}:
            found.append(f"{where}: {NOT_A_WORD}, and begins with none of history, profile, context, item")
        if not extractor.version:
            found.append(f"{where}.version is empty")
        if not extractor.outputs:
            found.append(f"{where}.outputs names no column")
        for column, width in extractor.outputs.items():
            if not column.isidentifier():
                found.append(f"{where}.outputs.{column}: {NOT_A_WORD}")
            if not 1 <= width <= MAX_WIDTH:
                found.append(f"{where}.outputs.{column} is {width}, 1 to {MAX_WIDTH} are possible")
            if f"{name}_{column}" in taken:
                found.append(f"{where}.outputs.{column}: the user tower has an input {name}_{column} already")
            taken.add(f"{name}_{column}")
    return found
