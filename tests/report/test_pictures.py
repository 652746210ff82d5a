"""Pictures that say what they show."""

from pathlib import Path

from zu_lightning.report.pictures import Drawing, new_figure, pictures_in, save_picture


def draw(folder: Path, name: str = "scores", height: float = 0.5) -> Path:
    figure = new_figure(3, 2)
    figure.subplots().bar(["before", "after"], [1.0, height])
    told = "Two bars, <before> and after: the second is lower."
    return save_picture(Drawing(figure, name, "Scores & more", told), folder)


def test_a_picture_tells_its_title_and_description(tmp_path: Path) -> None:
    path = draw(tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"the second is lower" in path.read_bytes()
    (picture,) = pictures_in(tmp_path)
    assert (picture.name, picture.title) == ("scores", "Scores & more")
    assert picture.description == "Two bars, <before> and after: the second is lower."
    assert "before</text>" in picture.svg, "letters stay letters"


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    assert first.with_suffix(".svg").read_bytes() == second.with_suffix(".svg").read_bytes()
    assert first.with_suffix(".svg").read_bytes() != draw(tmp_path / "c", height=0.7).with_suffix(".svg").read_bytes()


def test_pictures_come_by_name_and_a_folder_may_have_none(tmp_path: Path) -> None:
    assert pictures_in(tmp_path) == []
    for name in ("b", "a"):
        draw(tmp_path, name)
    assert [picture.name for picture in pictures_in(tmp_path)] == ["a", "b"]
