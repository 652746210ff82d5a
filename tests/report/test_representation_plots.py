"""Pictures of representations: which panels, on which axes, and what they say to somebody who cannot see them."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from zu_lightning.report.pictures import pictures_in, save_picture
from zu_lightning.report.representation_plots import draw_methods, draw_run
from zu_lightning.tracing.representations import LayerRepresentations, Plane, RepresentationMap, Shift

DRAW = "demo, 10 facts, seed 1"


def found(
    layers: int, *, groups: tuple[str, ...] = ("forget", "kept", "unseen"), reach: float = 1.0
) -> RepresentationMap:
    before = tuple((float(i), -float(i)) for i in range(len(groups)))
    plane = Plane((0.625, 0.25), before, tuple((reach * x, y + reach) for x, y in before))
    shifts = {group: Shift(1, None, None, None) for group in groups} | {"forget": Shift(2, 1.5, 2.25, 0.75)}
    at = tuple(LayerRepresentations(layer, plane, plane, shifts) for layer in range(layers))
    return RepresentationMap(tuple(f"fact {group}" for group in groups), groups, at)


def labels_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_a_run_has_a_panel_for_each_edited_layer(layers: int) -> None:
    figure = draw_run(found(layers)).figure
    assert [panel.get_title() for panel in figure.axes] == [f"layer {layer}" for layer in range(layers)]
    assert figure.axes[0].get_xlabel() == "component 1 (62%)"
    assert figure.axes[0].get_ylabel() == "component 2 (25%)"
    assert labels_of(figure) == [
        f"{group}, {when}" for group in ("forget", "kept", "unseen") for when in ("before", "after")
    ]


def test_groups_differ_in_color_and_shape_and_before_is_hollow() -> None:
    (panel,) = draw_run(found(1)).figure.axes
    looks = {str(cloud.get_label()): cloud for cloud in panel.collections}
    after = [cloud for label, cloud in looks.items() if label.endswith("after")]
    assert len({tuple(cloud.get_facecolors()[0]) for cloud in after}) == 3  # type: ignore[attr-defined]
    assert len({str(cloud.get_paths()[0]) for cloud in after}) == 3
    for label, cloud in looks.items():
        assert (len(cloud.get_facecolors()) == 0) == label.endswith("before")  # type: ignore[attr-defined]


def test_the_picture_of_a_run_says_the_numbers(tmp_path: Path) -> None:
    assert save_picture(draw_run(found(1)), tmp_path) == tmp_path / "pictures" / "representations.png"
    (picture,) = pictures_in(tmp_path)
    assert picture.title == "Representations before and after"
    assert "layer 0, forget: facts moved 2.25, their mean 1.50 standard deviations, AUC 0.75" in picture.description
    assert "kept: facts moved (undefined)" in picture.description


def test_methods_share_axes_and_those_without_the_layer_are_left_out(tmp_path: Path) -> None:
    methods = {"MEMIT": found(1, groups=("forget", "unseen"), reach=9.0), "Erase": found(2), "ROME": found(2)}
    panels = draw_methods(methods, 0, DRAW).figure.axes
    assert [panel.get_title() for panel in panels] == ["MEMIT", "Erase", "ROME"]
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in panels}) == 1
    assert "kept, after" in labels_of(draw_methods(methods, 0, DRAW).figure)
    assert [panel.get_title() for panel in draw_methods(methods, 1, DRAW).figure.axes] == ["Erase", "ROME"]
    path = save_picture(draw_methods(methods, 1, DRAW), tmp_path)
    assert path.name == "representations-demo-10-facts-seed-1-layer-1.png"
    (picture,) = pictures_in(tmp_path)
    assert picture.title == "Representations at layer 1: demo, 10 facts, seed 1"
    assert "Erase, forget: facts moved 2.25" in picture.description
    assert "MEMIT" not in picture.description
