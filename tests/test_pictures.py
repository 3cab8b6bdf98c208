"""Pictures: SVG that a browser draws alone, in light and dark, at any width."""

import re
from xml.etree import ElementTree

import pytest
from rows import errors, history, resnet, seeded, study, svm

import make_tables


def drawn(folder, kind: str) -> str | None:
    _, picture = make_tables.pictures(study(folder), kind).get(f"{kind}-mnist.svg", (None, None))
    return picture


def rows(folder) -> None:
    for seed in range(2):
        facts = seeded(seed) | errors(*range(20 + seed))
        resnet(folder, **facts, epochs=5, history=history(0.8, 0.9, 0.95))
        for epochs in (10, 20):
            resnet(folder, **facts, epochs=epochs, history=history(0.8, 0.9, 0.95))
        svm(folder, **facts, val_accuracy=0.97)
    for C, wrong in ((10, 30), (0.1, 700)):
        svm(folder, **seeded(0), **errors(*range(wrong)), C=C, val_accuracy=0.9)


@pytest.mark.parametrize("kind", make_tables.PICTURES)
def test_a_picture_is_whole_and_carries_its_own_style(tmp_path, kind):
    rows(tmp_path)
    root = ElementTree.fromstring(drawn(tmp_path, kind))
    width, height = (float(root.get(name)) for name in ("width", "height"))
    assert root.get("viewBox") == f"0 0 {width:.0f} {height:.0f}"
    assert width <= 420  # text stays large on a phone
    style = root.find("{*}style").text
    assert "prefers-color-scheme: dark" in style
    assert float(re.search(r"font: (\d+)px", style)[1]) >= 14
    assert root.find("{*}title").text.startswith("MNIST: ")
    for text in root.iter("{*}text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height
    for place in re.findall(r"translate\((\S+) (\S+)\)", drawn(tmp_path, kind)):
        assert 0 <= float(place[0]) <= width
        assert 0 <= float(place[1]) <= height


def test_every_setting_is_a_point_and_the_best_are_named(tmp_path):
    rows(tmp_path)
    picture = drawn(tmp_path, "accuracy")
    assert len(re.findall("faint", re.sub("<style>.*?</style>", "", picture, flags=re.DOTALL))) == 2
    assert ">ResNet-18 97.95<" in picture
    assert ">SVM 97.95<" in picture
    assert ">SVM 97.00<" not in picture


def test_a_training_is_drawn_once_though_it_gave_several_rows(tmp_path):
    rows(tmp_path)
    assert drawn(tmp_path, "longer").count('dotted"') == 1


def test_of_several_longest_trainings_the_best_is_drawn(tmp_path):
    rows(tmp_path)
    alone = drawn(tmp_path, "longer")
    for seed in range(2):
        facts = seeded(seed) | errors(*range(30)) | {"val_accuracy": 0.5}
        resnet(tmp_path, **facts, lr=1e-4, epochs=20, history=history(0.4, 0.5, 0.5))
        resnet(tmp_path, **facts, lr=1e-4, epochs=10, history=history(0.4, 0.5, 0.5))
    assert drawn(tmp_path, "longer") == alone


def test_there_is_no_picture_without_its_figures(tmp_path):
    resnet(tmp_path, training_flops=None, history=history(0.5))
    assert [drawn(tmp_path, kind) for kind in make_tables.PICTURES] == [None] * 3


@pytest.mark.parametrize("ends", [(0.0, 1.0), (98.0, 98.3), (0.7, 0.70001), (1, 20), (1, 5)])
def test_ticks_are_few_and_lie_on_the_axis(ends):
    ticks = make_tables.nice_ticks(*ends)
    assert 2 <= len(ticks) <= 7
    assert all(ends[0] <= tick <= ends[1] + 1e-6 for tick in ticks)
