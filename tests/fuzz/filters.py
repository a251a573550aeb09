"""The filter fuzz: clauses good and bad, of nasty values, through the check and into the languages of the indexes.

A filter is refused for its first bad clause, by the name that tables of our own give it, or typed. Its expressions are
read back by the grammar in `expressions`: their literals are the filter's values and no more, none leaves its quotes,
and they hold for the very items for which the function of the index in memory holds.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import strategies as st

from schemas.recall import FilterClause
from tests.fuzz import examples
from tests.fuzz.examples import nasty_text, one_of
from tests.fuzz.expressions import Reader, UnreadableError, same_type
from workers import filters
from workers.filters import Filter, InvalidFilter
from workers.index import milvus_expression
from workers.index.schema import encode_attributes, kept_attributes

DECLARED: dict[str, Any] = {
    "year": "number", "größe": "number", "lang": "string", "名": "string", "used": "bool",
    "genres": "strings", "_": "strings",
}  # fmt: skip
ONE = {"number": "eq ne lt le gt ge", "string": "eq ne", "bool": "eq ne", "strings": "contains"}
MANY = {"number": "in not_in", "string": "in not_in", "bool": "", "strings": "contains_any"}
OPS = sorted({op for table in (ONE, MANY) for ops in table.values() for op in ops.split()})
LETTERS = {"number": "n", "string": "s", "bool": "b", "strings": "l"}
TWO_53 = 1 << 53
TOGETHER = 32  # so many filters are made of one example's clauses, besides one of each and one of none
SIZES = (1, 2, 2, 2, 3, 3, 4, 5, 6, 16, 17)
MAX_EXPRESSION_BYTES = 16 * 101 * (2 * 1024 + 40)  # every byte of every value escaped, and in Lite a path to each


@dataclass(frozen=True)
class Example:
    """Clauses, values that items may have besides those asked for, and what decides how both are put together."""

    clauses: list[FilterClause]
    extras: list[Any]
    seed: int


@dataclass(frozen=True)
class Item:
    """What the index in memory holds of one, and what Milvus stores."""

    kept: dict[str, Any]
    stored: dict[str, Any]


numbers = (
    st.integers(-3, 3)
    | st.sampled_from(
        (0.0, -0.0, 0.1, 1e16, 1e-5, 5e-324, -1.7976931348623157e308, TWO_53, -TWO_53, float(TWO_53), 1990)
    )
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-TWO_53, TWO_53)
)
wrong_numbers = st.sampled_from((TWO_53 + 1, -TWO_53 - 1, 2**63, -(10**400), float("nan"), float("inf"), float("-inf")))
texts = nasty_text()
wrong_texts = one_of(("\ud800", "a\udfff", '"\ud83c', "é" * 513, "x" * 1025, "x" * 10**6))
good = {"number": numbers, "string": texts, "bool": st.booleans(), "strings": texts}
wrong = wrong_numbers | wrong_texts | st.sampled_from((None, {}, {"a": 1}, [], [[]], [None], [True, 1, "1"], b"x"))
anything = numbers | texts | st.booleans() | wrong
many_numbers = st.integers(1, 120).map(lambda n: [float(each) for each in range(n)])
many_texts = st.integers(1, 120).map(lambda n: [f'"{each}\\' for each in range(n)])


@st.composite
def clauses(draw: st.DrawFn) -> FilterClause:
    """One clause, three of four such as its field has."""
    field = draw(st.sampled_from(sorted(DECLARED)))
    kind = DECLARED[field]
    damage = draw(st.integers(0, 15))
    one, many = ONE[kind].split(), MANY[kind].split()
    op = draw(st.sampled_from(one + many))
    if op in one:
        value = draw(good[kind])
    else:
        value = draw(st.lists(good[kind], min_size=1, max_size=5))
        if damage == 4:
            value = draw(many_numbers if kind == "number" else many_texts)
    if damage == 0:
        field = draw(texts | st.sampled_from(("_f", "Year", "year ", 'year"] or attributes["lang', "\ud800")))
    elif damage == 1:
        op = draw(st.sampled_from((*OPS, "like", "")))
    elif damage == 2:
        value = draw(anything | st.lists(anything, max_size=3))
    elif damage == 3:
        value = [*value, draw(anything)] if isinstance(value, list) else draw(wrong)
    return FilterClause(field=field, op=op, value=value)  # type: ignore[arg-type]


def made() -> st.SearchStrategy[Example]:
    """Examples of some clauses each."""
    stored = numbers | texts | st.booleans() | st.lists(texts, max_size=3) | st.integers(-(2**63), 2**63 - 1)
    extras = st.lists(stored | st.none() | st.just([1, "1"]), min_size=1, max_size=4)
    return st.builds(Example, st.lists(clauses(), min_size=1, max_size=8), extras, st.integers(0, 2**32))


def fault(asked: Sequence[FilterClause]) -> str | None:
    """What a filter must be refused for; None = for nothing. Written after docs/events.md, not after the code."""
    if len(asked) > 16:
        return "filter"
    for number, clause in enumerate(asked):
        kind = DECLARED.get(clause.field)
        if kind is None:
            return f"filter[{number}].field"
        if clause.op not in (ONE[kind] + " " + MANY[kind]).split():
            return f"filter[{number}].op"
        values = [clause.value]
        if clause.op in MANY[kind].split():
            values = clause.value if isinstance(clause.value, list) else []
        if not 1 <= len(values) <= 100 or not all(fits(kind, value) for value in values):
            return f"filter[{number}].value"
    return None


def fits(kind: str, value: Any) -> bool:
    """Whether a field of that type may be asked for it."""
    if kind == "bool":
        return value is True or value is False
    if kind == "number":
        if type(value) is int:
            return -TWO_53 <= value <= TWO_53
        return type(value) is float and value - value == 0
    return type(value) is str and len(value.encode(errors="surrogatepass")) <= 1024 and not surrogates(value)


def surrogates(text: str) -> bool:
    """Whether it is no text that UTF-8 can carry."""
    return any("\ud800" <= character <= "\udfff" for character in text)


class Filters:
    """Examples, each of many filters. Counts what became of them."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def check(self, example: Example) -> int:
        """Every filter of one example; how many. Raises AssertionError."""
        chance = random.Random(example.seed)
        items = self._items(example, chance)
        asked = [[clause] for clause in example.clauses] + [[]]
        fine = [clause for clause in example.clauses if fault([clause]) is None]
        for _ in range(TOGETHER):
            pool = fine if fine and chance.random() < 0.8 else example.clauses
            asked.append(chance.choices(pool, k=chance.choice(SIZES)))
        for each in asked:
            self._one(each, items, chance)
        return len(asked)

    def _one(self, asked: list[FilterClause], items: list[Item], chance: random.Random) -> None:
        must = fault(asked)
        try:
            where = filters.checked(asked, DECLARED)
        except InvalidFilter as error:
            assert str(error) == must, (str(error), must, asked)
            self.outcomes[must.rpartition(".")[2]] += 1
            return
        assert must is None, (must, asked)
        self.outcomes["typed"] += 1
        self._typed(asked, where, chance)
        for lite in (False, True):
            self._expression(where, lite=lite, items=items)

    def _typed(self, asked: list[FilterClause], where: Filter, chance: random.Random) -> None:
        shuffled = []
        for clause, typed in zip(asked, where, strict=True):
            values = clause.value if clause.op in MANY[typed.kind].split() else [clause.value]
            if typed.kind == "number":
                values = [float(value) for value in values]
            assert (typed.field, typed.kind, typed.op) == (clause.field, DECLARED[clause.field], clause.op), (
                clause,
                typed,
            )
            assert list(typed.values) == sorted(set(values)), (clause, typed)
            assert {type(value) for value in typed.values} == {type(value) for value in values}, (clause, typed)
            again = chance.sample(clause.value, len(clause.value)) if isinstance(clause.value, list) else clause.value
            shuffled.append(FilterClause(field=clause.field, op=clause.op, value=again))
        same = filters.checked(shuffled, DECLARED)
        assert same == where, asked
        assert hash(same) == hash(where), asked

    def _expression(self, where: Filter, *, lite: bool, items: list[Item]) -> None:
        told = milvus_expression.expression(where, lite=lite)
        assert len(told.encode()) <= MAX_EXPRESSION_BYTES, where
        if not where:
            assert told == ""
            return
        try:
            reader = Reader(told, lite=lite)
        except UnreadableError as error:
            raise AssertionError(f"{error}: {told} of {where}") from error
        values = [value for clause in where for value in clause.values]
        assert [repr(value) for value in reader.told.values] == [repr(value) for value in values], (told, where)
        paths = [clause.field for clause in where for _ in range(self._paths(clause, lite))]
        assert reader.told.paths == paths, (told, where)
        tagged = [clause for clause in where if lite or clause.op in {"ne", "not_in"}]
        assert reader.told.tags == [f"{clause.field}:{LETTERS[clause.kind]}" for clause in tagged], (told, where)
        for item in items:
            answer, must = reader.answer(item.stored), filters.holds(where, item.kept)
            assert answer == must, (answer, must, told, where, item)
            self.outcomes["held" if must else "did not hold"] += 1
        held = [n for n, item in enumerate(items) if filters.holds(where, item.kept)]
        assert filters.which(where, [item.kept for item in items]) == held, (where, items)

    def _paths(self, clause: filters.Clause, lite: bool) -> int:
        """Lite has no `in` within JSON: it compares with one value after the other."""
        return len(clause.values) if lite and clause.op in {"in", "not_in"} else 1

    def _items(self, example: Example, chance: random.Random) -> list[Item]:
        """Some with the very values that are asked for, or one beside them, in their own fields and in others."""
        pool = list(example.extras)
        for clause in example.clauses:
            values = clause.value if isinstance(clause.value, list) else [clause.value]
            pool += [value for value in values if storable(value)]
        lists = [[each for each in chance.choices(pool, k=3) if isinstance(each, str)] for _ in range(3)]
        pool += lists + [value + 1 for value in pool if same_type(value, 0.0) and abs(value) < 2**62]
        by_kind = {
            "number": [value for value in pool if same_type(value, 0.0)] or [0],
            "string": [value for value in pool if isinstance(value, str)] or [""],
            "bool": [True, False],
            "strings": lists,
        }
        items: list[dict[str, Any]] = [{}]
        for _ in range(4):
            item = {}
            for field, kind in DECLARED.items():
                if (roll := chance.random()) < 0.8:
                    item[field] = chance.choice(by_kind[kind])
                elif roll < 0.95:
                    item[field] = chance.choice(pool)
            items.append(item)
        return [Item(kept_attributes(item), orjson.loads(encode_attributes(item))) for item in items]


def storable(value: Any) -> bool:
    """Whether an event may bring it as an attribute."""
    if isinstance(value, str):
        return len(value) <= 2000 and not surrogates(value)
    return isinstance(value, bool) or (isinstance(value, int | float) and -(2**63) <= value < 2**63)


def run(seed: int, inputs: int) -> dict[str, object]:
    """So many filters. Raises AssertionError with the example, made as small as it can be."""
    fuzz = Filters()
    return examples.run(seed, inputs, made(), fuzz.check) | {"outcomes": dict(fuzz.outcomes.most_common())}
