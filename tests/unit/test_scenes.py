"""Scenes as they are written, checked against the bundle, and what a request makes of one."""

import pytest

from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Vocabularies
from schemas.recall import CandidateList, FilterClause, RecallRequest
from workers.errors import ConfigurationError
from workers.local.workers import environment
from workers.pipelines.admission import Asked, Incoming, View, admit
from workers.plans import SourceShare, plans
from workers.scenes import SceneSettings
from workers.settings import load_settings

SPEC = load_spec(builtin_spec("marketplace"))
HOME = {
    "k": 60,
    "exclude_seen": False,
    "filter": [{"field": "in_stock", "op": "eq", "value": True}],
    "at_most": {"category": 3},
    "sources": {"tower": {}, "popular": {"weight": 0.5, "at_least": 5, "at_most": 20}},
}


def view(**scenes: object) -> View:
    settings = load_settings(scenes=scenes)
    return View(Encoding(SPEC, Vocabularies({}, [])), 64, "v", "c", plans(settings.scenes, SPEC))


def ask(of: View, *, now_ms: int = 1000, **fields: object) -> Asked | CandidateList:
    request = RecallRequest(**({"request_id": "r", "user_id": "u"} | fields))
    return admit(Incoming(request, 1000), of, now_ms)


def test_scenes_reach_another_process_through_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(scenes={"home": HOME})
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings().scenes == settings.scenes
    assert settings.shown("scenes").startswith('{"home":{"k":60')


def test_without_scenes_there_is_the_default_one() -> None:
    asked = ask(view())
    assert isinstance(asked, Asked)
    assert (asked.k, asked.exclude_seen, asked.where) == (100, True, ())
    assert asked.sources == (SourceShare("tower"),)


def test_a_scene_decides_what_a_request_leaves_open() -> None:
    asked = ask(view(home=HOME), scene="home")
    assert isinstance(asked, Asked)
    assert (asked.k, asked.exclude_seen, asked.plan.caps) == (60, False, (("category", 3),))
    assert asked.sources == (SourceShare("tower"), SourceShare("popular", 0.5, 5, 20))
    assert [(clause.field, clause.values) for clause in asked.where] == [("in_stock", (True,))]


def test_a_request_may_decide_otherwise_but_never_loosens_the_filter() -> None:
    clause = FilterClause(field="price", op="lt", value=9)
    asked = ask(view(home=HOME), scene="home", k=7, exclude_seen=True, filter=[clause])
    assert isinstance(asked, Asked)
    assert (asked.k, asked.exclude_seen) == (7, True)
    assert [clause.field for clause in asked.where] == ["in_stock", "price"]


def test_the_default_scene_may_be_changed() -> None:
    asked = ask(view(default={"k": 5}))
    assert isinstance(asked, Asked)
    assert asked.k == 5


def test_anchors_bring_the_source_that_looks_for_more_like_them() -> None:
    asked = ask(view(), anchor_items=["a"])
    assert isinstance(asked, Asked)
    assert [share.name for share in asked.sources] == ["tower", "similar"]
    named = ask(view(more={"sources": {"similar": {"weight": 3}, "tower": {}}}), scene="more", anchor_items=["a"])
    assert isinstance(named, Asked)
    assert named.sources[0] == SourceShare("similar", 3)


@pytest.mark.parametrize(
    ("fields", "reason", "error_field"),
    [
        ({"scene": "nowhere"}, "invalid_request", "scene"),
        ({"scene": "more"}, "invalid_request", "anchor_items"),
        ({"filter": [FilterClause(field="colour", op="eq", value=1)]}, "invalid_filter", "filter[0].field"),
    ],
)
def test_what_cannot_be_asked_is_rejected(fields: dict, reason: str, error_field: str) -> None:
    answer = ask(view(more={"sources": {"similar": {}}}), **fields)
    assert isinstance(answer, CandidateList)
    assert (answer.status, answer.reasons, answer.error_field) == ("rejected", [reason], error_field)


def test_what_comes_too_late_is_expired() -> None:
    answer = ask(view(), now_ms=3000)
    assert isinstance(answer, CandidateList)
    assert answer.status == "expired"


@pytest.mark.parametrize(
    ("scene", "line"),
    [
        ({"k": 0}, "setting scenes home k"),
        ({"sources": {}}, "setting scenes home sources"),
        ({"sources": {"magic": {}}}, "setting scenes home sources magic"),
        ({"sources": {"tower": {"weight": 0}}}, "setting scenes home sources tower weight"),
        ({"sources": {"tower": {"at_least": 9, "at_most": 3}}}, "at_least is 9, more than at_most, 3"),
        ({"sources": {"tower": {"quota": 3}}}, "setting scenes home sources tower quota"),
        ({"filter": [{"field": "price"}]}, "missing required field `op`"),
        ({"filter": [{"field": "price", "op": "is", "value": 1}]}, "Invalid enum value 'is'"),
        ({"at_most": {"category": 0}}, "setting scenes home at_most category"),
        ({"colour": "red"}, "setting scenes home colour"),
    ],
)
def test_a_scene_that_cannot_work_is_refused_in_one_line(scene: dict, line: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_settings(scenes={"home": scene})
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("scene", "line"),
    [
        ({"filter": [{"field": "colour", "op": "eq", "value": 1}]}, "setting scenes.home.filter[0].field"),
        ({"filter": [{"field": "price", "op": "eq", "value": "x"}]}, "setting scenes.home.filter[0].value"),
        ({"at_most": {"seller": 3}}, "setting scenes.home.at_most: 'seller' is not [filterable]"),
    ],
)
def test_a_scene_that_does_not_fit_the_bundle_is_refused_in_one_line(scene: dict, line: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        plans({"home": SceneSettings(**scene)}, SPEC)
    assert str(refused.value).startswith(line)
