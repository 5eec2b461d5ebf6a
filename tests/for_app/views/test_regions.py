import numpy as np
from PIL import Image

from for_app.views.regions import COLOURS, SHOWN_PX, draw_regions, region_colour, region_numbers
from for_search.query.image_labels import ImageLabel, ImageLabels

CELLS = np.array([[7, 7, 2], [2, 7, 2], [2, 2, 4]])


def found(*clusters: int) -> ImageLabels:
    labels = tuple(ImageLabel(f"name {i}", 0.5, cluster) for i, cluster in enumerate(clusters))
    return ImageLabels(labels, len(labels), 0.1, CELLS)


def test_regions_are_numbered_by_their_first_label() -> None:
    assert region_numbers(found(4, 7, 4, 2)) == {4: 1, 7: 2, 2: 3}
    assert region_numbers(found()) == {}
    assert [region_colour(n) for n in (1, 8, 9)] == [COLOURS[0], COLOURS[7], COLOURS[0]]


def test_only_the_cells_of_labels_are_tinted() -> None:
    grey = Image.new("RGB", (300, 150), (128, 128, 128))
    drawn = np.asarray(draw_regions(grey, found(7, 4)))
    assert drawn.shape == (SHOWN_PX // 2, SHOWN_PX, 3)  # the whole image, in its own shape
    height, width = drawn.shape[0] / 3, drawn.shape[1] / 3
    for row in range(3):
        for column in range(3):
            pixel = drawn[int((row + 0.5) * height) + 30, int((column + 0.5) * width) + 60]  # beside the number
            number = {7: 1, 4: 2}.get(int(CELLS[row, column]))
            if number is None:
                assert pixel.tolist() == [128, 128, 128]
            else:
                expected = 128 + 0.28 * (np.array(region_colour(number)) - 128.0)
                assert np.abs(pixel - expected).max() <= 1
    assert drawn[0, 0].tolist() == list(region_colour(1))  # an outline all around
    assert drawn[0, -1].tolist() == [128, 128, 128]


def test_nothing_to_draw_leaves_the_image_alone() -> None:
    grey = Image.new("RGB", (SHOWN_PX, 10), (1, 2, 3))
    assert draw_regions(grey, found()).tobytes() == grey.tobytes()


def test_every_part_of_a_region_has_its_number() -> None:
    plain = Image.new("RGB", (SHOWN_PX, SHOWN_PX), (128, 128, 128))
    dark = (np.asarray(draw_regions(plain, found(2))) < 60).all(axis=-1)
    third = SHOWN_PX // 3
    written = [
        (row, column)
        for row in range(3)
        for column in range(3)
        if dark[row * third : (row + 1) * third, column * third : (column + 1) * third].sum() > 20
    ]
    assert written == [(0, 2), (2, 0)]  # cluster 2 lies in two pieces
