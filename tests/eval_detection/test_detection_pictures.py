"""detections.png: what is drawn where, read back from its pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from pycocotools import mask as rle_tools

from eval_detection.pictures import FEW, draw_pictures
from eval_detection.results import Result
from eval_detection.samples import DetectionData, Sample, as_sample
from siambench.record import DatasetInfo
from siambench.sheet import COLOURS, GAP, LARGEST, LINE, SMALLEST

GREY = (100, 100, 100)
DOG, CAT = (ImageColor.getrgb(colour) for colour in COLOURS[:2])


def sample(
    folder: Path, name: str, size: tuple[int, int], boxes: list[list[float]], **more
) -> Sample:
    path = folder / f"{name}.png"
    Image.new("RGB", size, GREY).save(path)
    more = {"labels": [0] * len(boxes), **more}
    return as_sample(path, name, size[1], size[0], boxes, **more)


def data(*samples: Sample) -> DetectionData:
    return DetectionData(["dog", "cat"], [7, 3], [], list(samples), DatasetInfo("x", "y", {}))


def found(name: str, box: list[float], score: float, category: int = 7, **more) -> Result:
    x0, y0, x1, y1 = box
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": name, "category_id": category, "bbox": bbox, "score": score, **more}


def drawn(folder: Path, of: DetectionData, results: list[Result], most: int = 8) -> np.ndarray:
    draw_pictures(of, results, folder / "out.png", most)
    with Image.open(folder / "out.png") as image:
        return np.asarray(image.convert("RGB")).astype(int)


def pair(page: np.ndarray, width: int, height: int, y: int = GAP + LINE) -> list[np.ndarray]:
    """Ground truth and detections of a row whose pictures begin at ``y``."""
    return [page[y : y + height, x : x + width] for x in (GAP, 2 * GAP + width)]


def near(pixels: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    return (abs(pixels - np.array(colour)) <= 4).all(-1)  # PIL looks up 256 colours in steps of 4


def test_boxes_are_where_they_are_in_their_classes_colours(tmp_path: Path) -> None:
    box, mine = [10, 20, 40, 45], [50, 15, 90, 40]
    one = sample(tmp_path, "a", (100, 50), [box])
    page = drawn(tmp_path, data(one), [found("a", mine, 0.9, category=3)])
    assert page.shape[:2] == (2 * GAP + LINE + 80, 3 * GAP + 320)  # enlarged to 160 px
    left, right = pair(page, 160, 80)
    for picture, (x0, y0, x1, y1), colour, other in (
        (left, box, DOG, CAT),
        (right, mine, CAT, DOG),
    ):
        x0, y0, x1, y1 = (round(v * 1.6) for v in (x0, y0, x1, y1))
        hit = near(picture, colour)
        inside = np.s_[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        for edge in (hit[y0:y1, x0], hit[y0:y1, x1 - 1], hit[y1 - 1, x0:x1], hit[y0, x0:x1]):
            assert edge.all()
        assert near(picture[inside], GREY).all()
        outside = np.ones_like(hit)
        outside[max(y0 - 12, 0) : y1, x0:] = False  # 12 px of name above it
        assert near(picture[outside], GREY).all()
        assert hit[y0 - 12 : y0].sum() > 100
        assert not near(picture, other).any()


def test_without_detections_ground_truth_alone_is_drawn(tmp_path: Path) -> None:
    page = drawn(tmp_path, data(sample(tmp_path, "a", (200, 100), [[20, 30, 80, 90]])), [])
    left, right = pair(page, 200, 100)
    assert near(left, DOG).any()
    assert near(right, GREY).all()


def test_sure_detections_are_shown_or_the_best_few(tmp_path: Path) -> None:
    one = sample(tmp_path, "a", (200, 200), [[0, 0, 9, 9]])
    places = [[20, 20 + 30 * i, 190, 45 + 30 * i] for i in range(5)]

    def shown(scores: list[float]) -> list[bool]:
        rows = [found("a", p, s) for p, s in zip(places, scores, strict=True)]
        right = pair(drawn(tmp_path, data(one), rows), 200, 200)[1]
        return [bool(near(right[int(p[3]) - 1, 100], DOG)) for p in places]

    assert shown([0.9, 0.1, 0.5, 0.49, 0.6]) == [True, False, True, False, True]
    assert FEW == 3
    assert shown([0.4, 0.1, 0.3, 0.2, 0.05]) == [True, False, True, True, False]


def test_the_best_detection_lies_on_top(tmp_path: Path) -> None:
    one = sample(tmp_path, "a", (200, 200), [[0, 0, 9, 9]])
    for first, second in ((0.9, 0.6), (0.6, 0.9)):
        rows = [found("a", [20, 30, 180, 150], s, c) for s, c in ((first, 7), (second, 3))]
        right = pair(drawn(tmp_path, data(one), rows), 200, 200)[1]
        assert near(right[149, 20:180], DOG if first > second else CAT).all()


def test_difficult_objects_are_dashed(tmp_path: Path) -> None:
    box = [20.0, 30.0, 180.0, 150.0]
    for difficult in (False, True):
        one = sample(tmp_path, "a", (200, 160), [box], difficult=[difficult])
        left, _ = pair(drawn(tmp_path, data(one), []), 200, 160)
        for edge in (left[149, 20:180], left[30:150, 20]):
            share = near(edge, DOG).mean()
            assert (share == 1) if not difficult else (0.4 < share < 0.6)


def test_masks_are_filled_where_there_are_any(tmp_path: Path) -> None:
    box = [20.0, 20.0, 180.0, 180.0]
    triangle = np.array([30, 30, 170, 30, 100, 170], float)
    bitmap = np.zeros((200, 200), np.uint8)
    bitmap[40:60, 40:160] = 1
    code = rle_tools.encode(np.asfortranarray(bitmap))
    filled, plain, polygon = (
        sample(tmp_path, "a", (200, 200), [box], masks=m) for m in ([bitmap], None, [[triangle]])
    )
    left, right = pair(
        drawn(tmp_path, data(plain), [found("a", box, 0.9, segmentation=code)]), 200, 200
    )
    assert near(left[100, 100], GREY)
    tinted = (abs(right - np.array(GREY)) > 8).any(-1)[34:176, 24:176]
    np.testing.assert_array_equal(tinted, bitmap[34:176, 24:176] == 1)
    covered = right[50, 100]
    assert ((covered > np.minimum(GREY, DOG)) & (covered < np.maximum(GREY, DOG))).all()
    left, _ = pair(drawn(tmp_path, data(filled), []), 200, 200)
    assert (left[50, 100] == covered).all()
    left, _ = pair(drawn(tmp_path, data(polygon), []), 200, 200)
    assert near(left[100, 100], tuple(covered))
    assert near(left[160, 40], GREY)


def test_some_images_with_objects_spread_evenly(tmp_path: Path) -> None:
    box = [[10.0, 10.0, 30.0, 30.0]]
    test = [
        sample(tmp_path, f"{i:02}", (200 + i, 50), box if i % 2 else [], difficult=[True] * (i % 2))
        for i in range(22)
    ]
    page = drawn(tmp_path, data(*test), [], most=3)
    rows = [page[GAP + LINE + i * (LINE + 50 + GAP) :][:50, GAP:] for i in range(3)]
    assert len(page) == GAP + 3 * (LINE + 50 + GAP)
    widths = [int(near(row[45, :221], GREY).sum()) for row in rows]
    assert widths == [201, 211, 221]  # the first, the middle one and the last of the eleven
    few = drawn(tmp_path, data(*test[:4]), [])
    assert len(few) == GAP + 2 * (LINE + 50 + GAP)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((30, 20), (160, 107)),
        ((20, 30), (107, 160)),
        ((160, 400), (160, 400)),
        ((1600, 800), (400, 200)),
        ((2000, 3), (400, 1)),
    ],
)
def test_sizes(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    one = sample(tmp_path, "a", size, [[0.0, 0.0, *map(float, size)]])
    page = drawn(tmp_path, data(one), [found("a", [1, 1, 19, 2.5], 0.9)])
    assert SMALLEST == 160 <= max(shown) <= 400 == LARGEST
    assert page.shape[:2] == (2 * GAP + LINE + shown[1], 3 * GAP + 2 * shown[0])


def test_the_same_bytes_twice_whatever_the_order_of_detections(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    one = sample(tmp_path, "a", (640, 480), [[9.0, 9.0, 600.0, 99.0]])
    Image.fromarray(pixels).resize((640, 480)).save(one.path)
    results = [found("a", [9 + i, 9, 99 + 50 * i, 300], 0.5 + i / 50) for i in range(9)]
    first = drawn(tmp_path, data(one), results)
    bytes_of = (tmp_path / "out.png").read_bytes()
    again = drawn(tmp_path, data(one), results[::-1])
    assert (first == again).all()
    assert (tmp_path / "out.png").read_bytes() == bytes_of
    assert len(bytes_of) < 200_000
    with Image.open(tmp_path / "out.png") as image:
        assert image.info.keys() <= {"transparency"}  # no dates, no software


def test_names_from_other_scripts_and_very_long_ones_are_no_error(tmp_path: Path) -> None:
    one = sample(tmp_path, "a", (40, 40), [[1.0, 1.0, 30.0, 30.0]])
    of = DetectionData(["犬\n" * 90], [7], [], [one], DatasetInfo("x", "y", {}))
    page = drawn(tmp_path, of, [found("a", [1, 1, 30, 30], 0.9)])
    assert page.shape[1] == 3 * GAP + 320
