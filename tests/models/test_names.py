import open_clip

from d4c.models.names import OPENAI_NAMES, registered_names, registered_tags


def test_registered_names_are_open_clip_s() -> None:
    assert registered_names() == sorted(open_clip.list_models())


def test_registered_tags_are_open_clip_s() -> None:
    assert registered_tags("RN50") == ["openai", "yfcc15m", "cc12m"]
    assert registered_tags("no such model") == []


def test_every_openai_name_is_registered_with_openai_s_tag() -> None:
    for name in OPENAI_NAMES:
        assert "openai" in registered_tags(name.replace("/", "-").replace("@336px", "-336"))
