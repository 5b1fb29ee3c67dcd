"""The page of the properties says what the code says, and leaves nothing out."""

from __future__ import annotations

from pathlib import Path

from pawl.loops.properties.documents import GROUPS, NO_FEATURE, document, judges, main


def test_the_page_in_the_repository_is_what_the_code_says() -> None:
    assert main(["--check"]) == 0


def test_a_stale_page_fails_the_check_and_writing_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "properties.md"
    assert main(["--check"], path) == 1
    assert main([], path) == 0
    assert main(["--check"], path) == 0


def test_every_listed_property_has_a_class_unless_its_feature_is_missing() -> None:
    listed = {name: rest for properties in GROUPS.values() for name, rest in properties.items()}
    assert len(listed) == 37
    without_class = listed.keys() - judges().keys()
    assert without_class == {name for name, rest in listed.items() if rest == NO_FEATURE}


def test_every_class_is_on_the_page_with_its_statement() -> None:
    page = document()
    for name, judge in judges().items():
        assert f"| `{name}` | " in page
        assert judge.kind.__doc__
        assert judge.where
