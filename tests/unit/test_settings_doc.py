"""docs/settings.md names every setting, with its default as it is."""

from workers import settings_doc
from workers.settings import Settings


def test_the_page_is_what_the_settings_are() -> None:
    assert settings_doc.main(["--check"]) == 0


def test_every_setting_has_a_meaning_and_no_other() -> None:
    assert list(settings_doc.MEANINGS) == list(Settings.model_fields)
    assert not [name for name, meaning in settings_doc.MEANINGS.items() if not meaning or "|" in meaning]
