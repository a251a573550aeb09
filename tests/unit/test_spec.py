"""features.toml: what is accepted, and one clear line for every mistake."""

import pytest

from models.spec import Popular, SpecError, builtin_spec, load_spec, parse_spec

GOOD = """
name = "shop"
[history]
length = 10
[[history.codes]]
action = "buy"
[target]
action = "buy"
[profile]
age = { kind = "bucket", edges = [18, 30] }
[item]
price = { kind = "number", log = true }
"""


@pytest.mark.parametrize("name", ["movielens", "marketplace"])
def test_the_specs_that_come_with_the_package(name: str) -> None:
    spec = load_spec(builtin_spec(name))
    assert spec.name == name
    assert spec.hash == load_spec(builtin_spec(name)).hash


def test_layout_and_comments_do_not_change_the_hash_but_meaning_does() -> None:
    spec = parse_spec(GOOD)
    assert parse_spec(GOOD.replace("length = 10", "length   =   10  # newest")).hash == spec.hash
    assert parse_spec(GOOD.replace("length = 10", "length = 11")).hash != spec.hash


def test_a_spec_without_what_came_later_keeps_the_hash_that_bundles_were_packed_with() -> None:
    """Another hash would refuse every bundle that exists. The expected ones are those of the first release."""
    assert parse_spec(GOOD).hash == "3ebeaa0012d1874d81aa15fe8af1e8537c67fbd6d033fd3429906d79699a98fb"
    seen = GOOD + '[seen]\nactions = ["view"]\n'
    assert parse_spec(seen).hash == "490d05047aae52ad9287b6c91e640952a871e6cca15dcc9bb4ef838368c66759"
    assert parse_spec(seen + "window_ms = 0\ncap = 2000\n").hash == parse_spec(seen).hash
    assert parse_spec(f"{GOOD}[popular]\nhalf_life_ms = 604_800_000\n").hash == parse_spec(GOOD).hash


@pytest.mark.parametrize(
    "line", ["[seen]\nwindow_ms = 60000", "[seen]\ncap = 1999", "[popular]\nhalf_life_ms = 604_800_001"]
)
def test_another_rule_is_another_spec(line: str) -> None:
    assert parse_spec(f"{GOOD}{line}\n").hash != parse_spec(GOOD).hash


SOURCED = (
    GOOD
    + """
[context]
tier = { kind = "category", source = "shop", default = "new" }
age = { kind = "number", source = "shop", required = true }
hour = { kind = "number" }
[extractors.clock]
version = "1"
outputs.phase = 2
outputs.month = 12
"""
)


def test_fields_of_the_context_by_their_source() -> None:
    spec = parse_spec(SOURCED)
    assert {source: list(fields) for source, fields in spec.sourced.items()} == {"shop": ["tier", "age"]}
    assert {name: vector.size for name, vector in spec.vectors.items()} == {"clock.phase": 2, "clock.month": 12}


def test_sources_and_extractors_stand_in_the_hash_only_where_there_are_some() -> None:
    plain = f'{GOOD}[context]\nhour = {{ kind = "number" }}\n'
    assert parse_spec(plain).hash == "3dfd6c346bf656544cc7d4005887c6b24becfd23e8331c900213b9ab6805d55d"
    said = plain.replace('hour = { kind = "number"', 'hour = { kind = "number", source = "", required = false')
    assert parse_spec(said).hash == parse_spec(plain).hash
    hashes = {parse_spec(SOURCED).hash}
    for change in (
        ('"new"', '"old"'),
        ("required = true", "required = false"),
        ('= "1"', '= "2"'),
        ("phase = 2", "phase = 3"),
    ):
        hashes.add(parse_spec(SOURCED.replace(*change)).hash)
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (('source = "shop", default', "default"), "context.tier: default and required belong to a field with a source"),
        (('default = "new"', 'default = ""'), "context.tier: default '' is no value of kind category"),
        (("required = true", "default = true"), "context.age: default True is no value of kind number"),
        (("required = true", "default = nan"), "context.age: default nan is no value of kind number"),
        (("required = true", "required = true, default = 1"), "context.age: a required value has no default"),
        (('source = "shop", default', 'source = "a b", default'), "context.tier: source is 'a b'"),
        (('age = { kind = "bucket"', 'age = { source = "shop", kind = "bucket"'), "unknown field `source`"),
        (("[extractors.clock]", "[extractors.profile]"), "extractors.profile: a field's name must be a word"),
        (("outputs.phase = 2", "outputs.phase = 0"), "extractors.clock.outputs.phase is 0, 1 to 1024 are possible"),
        (('version = "1"', 'version = ""'), "extractors.clock.version is empty"),
        (('kind = "number", source', 'kind = "vector", source'), "context.age: kind vector is what extractors give"),
    ],
)
def test_a_mistake_in_sources_and_extractors_gives_one_line(change: tuple[str, str], line: str) -> None:
    assert change[0] in SOURCED
    with pytest.raises(SpecError) as raised:
        parse_spec(SOURCED.replace(*change, 1))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_extractors_cannot_give_the_same_input() -> None:
    two = '[extractors.a_b]\nversion = "1"\noutputs.c = 1\n[extractors.a]\nversion = "1"\noutputs.b_c = 1\n'
    with pytest.raises(SpecError, match=r"extractors\.a\.outputs\.b_c: the user tower has an input a_b_c already"):
        parse_spec(GOOD + two)


def test_from_when_on_an_item_counts_as_seen() -> None:
    assert parse_spec(GOOD).seen.since_ms(5000) is None
    assert parse_spec(GOOD + "[seen]\nwindow_ms = 60000\n").seen.since_ms(100_000) == 40_000


def test_popularity_per_value_of_a_profile_field() -> None:
    text = f'{GOOD}[popular]\nsegment = "city"\n'.replace("[profile]", '[profile]\ncity = { kind = "category" }')
    assert parse_spec(text).popular == Popular(half_life_ms=7 * 86_400_000, segment="city")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("length = 10", "length = 65"), "history.length is 65, a record holds 1 to 64"),
        (("length = 10", "length = 10\ntime_resolution_ms = 0"), "time_resolution_ms is 0"),
        (
            ('[target]\naction = "buy"', '[target]\naction = "sell"'),
            "target.action 'sell' has no entry in history.codes",
        ),
        (("edges = [18, 30]", "edges = [30, 18]"), "profile.age: edges must be finite and rise"),
        (('kind = "bucket", edges = [18, 30]', 'kind = "bucket"'), "profile.age: edges belong to kind bucket"),
        (('kind = "number", log', 'kind = "category", log'), "item.price: log belongs to kind number"),
        (("age =", '"a b" ='), "profile.a b: a field's name must be a word"),
        (('name = "shop"', ""), "missing required field `name`"),
        (("[history]", "[historie]"), "Object"),
        (('kind = "number"', 'kind = "numeric"'), "Invalid enum value 'numeric'"),
        (('name = "shop"', "name = "), "Invalid value"),
        (("[target]", "[seen]\nwindow_ms = -1\n[target]"), "seen.window_ms is -1, must be at least 0 (0 = for ever)"),
        (("[target]", "[seen]\ncap = 0\n[target]"), "seen.cap is 0, 1 to 2000 are possible"),
        (("[target]", "[seen]\ncap = 2001\n[target]"), "seen.cap is 2001, 1 to 2000 are possible"),
        (("[target]", "[seen]\nwindow_s = 1\n[target]"), "unknown field `window_s`"),
        (("[target]", '[[history.codes]]\naction = "buy"\n[target]'), "same action and range twice"),
        (('name = "shop"', 'name = "../shop"'), "name is '../shop', must be 1 to 64 letters"),
        (("length = 10", "length = 10\nsession_ms = 0"), "history.session_ms is 0"),
        (("edges = [18, 30]", "edges = [18, nan]"), "profile.age: edges must be finite and rise"),
        (("[target]", "weight = nan\n[target]"), "history.codes, entry 1: weight, at_least and below must be finite"),
        (
            ("[target]", "at_least = 2\nbelow = 1\n[target]"),
            "history.codes, entry 1: no value is at least 2.0 and below 1.0",
        ),
        (("[profile]", "at_least = inf\n[profile]"), "target.at_least must be a finite number"),
        (
            ("[item]", "[seen]\nwindow_ms = -1\n[item]"),
            "seen.window_ms is -1, must be at least 0",
        ),
        (
            ("[item]", "[seen]\ncap = 2001\n[item]"),
            "seen.cap is 2001, 1 to 2000 are possible",
        ),
        (
            ("[item]", "[popular]\nhalf_life_ms = 59_999\n[item]"),
            "popular.half_life_ms is 59999, must be at least 60000",
        ),
        (
            ("[item]", '[popular]\nsegment = "age"\n[item]'),
            "popular.segment is 'age', must be a field of profile of kind",
        ),
        (
            ("[item]", '[popular]\nsegment = "cities"\n[item]'),
            "popular.segment is 'cities', must be a field of profile",
        ),
        (("[item]", '[filterable]\n_f = "string"\n[item]'), "filterable._f: an index keeps the types of the others"),
        (("price =", "code ="), "item.code: the item tower's input item_code is"),
    ],
)
def test_a_mistake_gives_one_line(change: tuple[str, str], line: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(SpecError) as raised:
        parse_spec(GOOD.replace(*change, 1))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text(tmp_path) -> None:
    (tmp_path / "features.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_spec(tmp_path / "features.toml")


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_spec(tmp_path / "features.toml")
