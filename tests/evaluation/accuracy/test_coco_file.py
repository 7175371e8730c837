"""COCO files as tools write them: repaired as pycocotools needs them, refused where the meaning is not certain."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from centernet_trt.errors import InputError, SpecError
from centernet_trt.evaluation.accuracy.bootstrap import ResampledAp, paired_drop
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth, category_notes, check_categories
from centernet_trt.evaluation.accuracy.coco_file import read_coco
from centernet_trt.runtime import ModelSpec, preset

Data = dict[str, Any]
Edit = Callable[[Data], Any]


def sound(images: int = 2, objects: int = 10) -> Data:
    """A file without faults: objects side by side in every image, of three categories in turn."""
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 900, "height": 400} for n in range(1, images + 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(("cat", "dog", "cow"), 1)],
        "annotations": [
            {
                "id": 1 + row + objects * (image - 1),
                "image_id": image,
                "category_id": row % 3 + 1,
                "bbox": [40 * row, 10, 30, 30 + row],
                "area": 30 * (30 + row),
                "iscrowd": 0,
            }
            for image in range(1, images + 1)
            for row in range(objects)
        ],
    }


def load(folder: Path, data: Any, name: str = "i.json") -> CocoGroundTruth:
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        for row in data["images"]:
            with contextlib.suppress(TypeError, KeyError, AttributeError):
                path = folder / str(row["file_name"]).replace("\\", "/")
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"an image")
    (folder / name).write_text(json.dumps(data))
    return CocoGroundTruth(folder / name, folder)


def perfect(data: Data, image: Callable[[int], Any] = int) -> list[Data]:
    """Results equal to the annotations of `sound`, with image ids as a function gives them."""
    return [
        {
            "image_id": image(row["image_id"]),
            "category_id": row["category_id"],
            "bbox": row["bbox"],
            "score": 1 - 0.001 * number,
        }
        for number, row in enumerate(data["annotations"])
    ]


def each(data: Data, key: str, **changes: Callable[[Any], Any]) -> None:
    """Change fields of all rows of a list."""
    for row in data[key]:
        row.update({field: change(row[field]) for field, change in changes.items()})


def without(data: Data, key: str, *fields: str) -> None:
    for row in data[key]:
        for field in fields:
            del row[field]


REPAIRED: dict[str, tuple[Edit, str]] = {
    "annotation ids from 0": (lambda d: each(d, "annotations", id=lambda i: i - 1), "zero annotation ids"),
    "one annotation id": (lambda d: each(d, "annotations", id=lambda _: 7), "repeated annotation ids"),
    "no annotation ids": (lambda d: without(d, "annotations", "id"), "missing annotation ids"),
    "annotation ids of text": (lambda d: each(d, "annotations", id=lambda i: f"a-{i}"), "non-numeric"),
    "annotation ids of digits": (lambda d: each(d, "annotations", id=str), "non-numeric"),
    "null annotation ids": (lambda d: each(d, "annotations", id=lambda _: None), "missing annotation ids"),
    "category ids of annotations as text": (
        lambda d: each(d, "annotations", category_id=str),
        "category ids",
    ),
    "category ids of categories as text": (lambda d: each(d, "categories", id=str), "category ids"),
    "image ids of annotations as text": (lambda d: each(d, "annotations", image_id=str), "image ids"),
    "image ids of images as text": (lambda d: each(d, "images", id=str), "image ids"),
    "image ids padded with zeros": (
        lambda d: (each(d, "images", id=lambda i: f"{i:012}"), each(d, "annotations", image_id=str)),
        "image ids",
    ),
    "ids as floats in text": (lambda d: each(d, "annotations", image_id=lambda i: f"{i}.0"), "image ids"),
    "boxes as text": (lambda d: each(d, "annotations", bbox=lambda b: [*map(str, b)]), "text of numbers"),
    "no iscrowd": (lambda d: without(d, "annotations", "iscrowd"), "missing iscrowd"),
    "iscrowd false": (lambda d: each(d, "annotations", iscrowd=bool), "iscrowd"),
    "iscrowd text": (lambda d: each(d, "annotations", iscrowd=str), "iscrowd"),
    "no area": (lambda d: without(d, "annotations", "area"), "width x height"),
    "null area": (lambda d: each(d, "annotations", area=lambda _: None), "width x height"),
    "file names for image ids": (
        lambda d: each(d, "annotations", image_id=lambda i: f"{i}.png"),
        "image ids of annotations of another type",
    ),
    "names for category ids": (
        lambda d: each(d, "annotations", category_id=("", "cat", "dog", "cow").__getitem__),
        "category ids of annotations of another type",
    ),
    "an image twice": (lambda d: d["images"].append(dict(d["images"][0])), "repeated rows of images"),
    "a category twice": (lambda d: d["categories"].append(dict(d["categories"][1])), "of categories"),
}


@pytest.mark.parametrize("kind", REPAIRED)
def test_repairs_give_the_right_ap_and_one_note(tmp_path: Path, kind: str) -> None:
    data = sound()
    rows = perfect(data)
    expected = load(tmp_path, data).score(rows)
    assert expected.ap == 1.0
    edit, words = REPAIRED[kind]
    edit(data)
    truth = load(tmp_path, data)
    assert truth.score(rows) == expected
    (note,) = truth.notes
    assert "repaired while reading" in note
    assert words in note


def test_a_sound_file_has_no_notes(tmp_path: Path) -> None:
    data = sound()
    assert load(tmp_path, data).notes == ()
    each(data, "annotations", id=float, image_id=float, category_id=float, iscrowd=int)
    truth = load(tmp_path, data)
    assert truth.notes == ()
    assert truth.score(perfect(sound())).ap == 1.0


def test_the_note_counts_each_kind(tmp_path: Path) -> None:
    data = sound()
    del data["annotations"][3]["area"], data["annotations"][4]["area"], data["annotations"][0]["iscrowd"]
    data["annotations"][5]["id"] = 0
    (note,) = load(tmp_path, data).notes
    for words in (
        "width x height of the box (2)",
        "iscrowd taken as 0 (1)",
        "zero annotation ids numbered anew (1)",
    ):
        assert words in note


def test_ids_of_text_stay_and_are_found_from_either_side(tmp_path: Path) -> None:
    data = sound()
    each(data, "images", id=lambda i: f"img{i}")
    each(data, "annotations", image_id=lambda i: f"img{i}")
    truth = load(tmp_path, data)
    assert [image.id for image in truth.images] == ["img1", "img2"]
    assert truth.notes == ()
    rows = [row | {"image_id": f"img{row['image_id']}"} for row in perfect(sound())]
    before = json.dumps(rows)
    assert truth.score(rows).ap == 1.0
    assert json.dumps(rows) == before, "the caller's rows are left as they are"
    assert truth.score([row for row in rows if row["image_id"] == "img2"], ["img2"]).ap == 1.0
    with pytest.raises(InputError, match="no image with the id 'img3'"):
        truth.score([rows[0] | {"image_id": "img3"}])
    assert ResampledAp(truth, rows).image_ids == ["img1", "img2"]


def test_names_stand_for_missing_ids(tmp_path: Path) -> None:
    data = sound()
    without(data, "images", "id")
    each(data, "annotations", image_id=lambda i: f"{i}.png")
    truth = load(tmp_path, data)
    assert [image.id for image in truth.images] == ["1.png", "2.png"]
    (note,) = truth.notes
    assert "missing image ids taken from the name (2)" in note
    assert truth.score(perfect(sound(), lambda i: f"{i}.png")).ap == 1.0


def test_zero_padded_and_plain_text_ids_are_two_ids(tmp_path: Path) -> None:
    data = sound()
    names = {1: "07", 2: "7"}
    each(data, "images", id=names.__getitem__)
    each(data, "annotations", image_id=names.__getitem__)
    truth = load(tmp_path, data)
    assert truth.score(perfect(sound(), names.__getitem__)).ap == 1.0
    data["annotations"][0]["image_id"] = 7  # either of them
    with pytest.raises(InputError, match=r"image ids .* \(\'07\', \'7\'\), got 7"):
        load(tmp_path, data)


REFUSED: dict[str, tuple[Edit, str]] = {
    "an annotation of no image": (
        lambda d: d["annotations"][4].update(image_id=9),
        r"expected image ids of annotations to be among those of images \(1, 2\), got 9 in annotations\[4\]",
    ),
    "no image_id": (lambda d: d["annotations"][0].pop("image_id"), "got nothing in annotations"),
    "ids of other kinds": (lambda d: each(d, "images", id=lambda i: f"img{i}"), "got 1 in .* and in 19 more"),
    "an image id as a list": (lambda d: d["annotations"][0].update(image_id=[1]), r"got \[1\]"),
    "an image id as a bool": (lambda d: d["annotations"][0].update(image_id=True), "got True"),
    "an unknown category": (
        lambda d: d["annotations"][2].update(category_id=0),
        r"category ids of annotations to be among those of categories \(1, 2, 3\), got 0",
    ),
    "an image without an id": (
        lambda d: d["images"][1].pop("id"),
        r"image ids of annotations to be among those of images \(1, '2.png'\), got 2 .* and in 9 more",
    ),
    "an image with an id that is none": (
        lambda d: d["images"][1].update(id=[2]),
        "an id .* every row of images",
    ),
    "an image id twice": (
        lambda d: d["images"][1].update(id=1),
        "one image for each image id, got 1 for '1.png'",
    ),
    "an image id as number and text": (
        lambda d: d["images"][1].update(id="1"),
        "one image for each image id",
    ),
    "a file name twice": (
        lambda d: d["images"][1].update(file_name="./1.png"),
        "every file_name once .* '1.png' with the ids 1 and 2",
    ),
    "no file name": (
        lambda d: d["images"][1].update(filename=d["images"][1].pop("file_name")),
        "a file_name in every row of images, got only id, width, height, filename",
    ),
    "a file name as a number": (lambda d: d["images"][1].update(file_name=3), "a file_name .* got 3"),
    "a negative size": (lambda d: d["images"][1].update(width=-4), "positive width and height .* got -4"),
    "a size as a word": (lambda d: d["images"][1].update(width="wide"), "positive width .* got 'wide'"),
    "no category name": (lambda d: d["categories"][0].pop("name"), "a name in every row of categories"),
    "no category id": (lambda d: d["categories"][0].pop("id"), r"those of categories \(2, 3, 'cat'\), got 1"),
    "no category id, and a name of digits": (
        lambda d: (d["categories"][0].pop("id"), d["categories"][0].update(name="1")),
        "an id .* every row of categories, got nothing",
    ),
    "a category id that is none": (
        lambda d: d["categories"][0].update(id=False),
        "an id .* every row of categories",
    ),
    "a category id twice": (lambda d: d["categories"][1].update(id=1), "one category for each category id"),
    "no bbox": (lambda d: d["annotations"][1].pop("bbox"), r"bbox to be \[x, y, .* got nothing"),
    "an empty bbox": (lambda d: d["annotations"][1].update(bbox=[]), r"got \[\]"),
    "three numbers": (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), r"got \[1, 2, 3\]"),
    "a bbox as an object": (lambda d: d["annotations"][1].update(bbox={"x": 1}), "got {'x': 1}"),
    "a bbox of text": (lambda d: d["annotations"][1].update(bbox=["one", 2, 3, 4]), "got .'one', 2"),
    "NaN": (
        lambda d: d["annotations"][1].update(bbox=[float("nan"), 0, 9, 9]),
        "four finite numbers, got .nan",
    ),
    "infinite": (lambda d: d["annotations"][1].update(bbox=[0, 0, float("inf"), 9]), "finite"),
    "too large for a float": (lambda d: d["annotations"][1].update(bbox=[0, 0, 10**400, 9]), "finite"),
    "a negative width": (
        lambda d: d["annotations"][1].update(bbox=[9, 9, -5, 9]),
        "no negative width or height",
    ),
    "a negative area": (lambda d: d["annotations"][1].update(area=-1), "area to be a number of at least 0"),
    "an area that is NaN": (lambda d: d["annotations"][1].update(area=float("nan")), "area to be .* got nan"),
    "an area as text": (lambda d: d["annotations"][1].update(area="900"), "area to be .* got '900'"),
    "iscrowd 2": (lambda d: d["annotations"][1].update(iscrowd=2), "iscrowd to be 0 or 1, got 2"),
    "a row that is a list": (lambda d: d["annotations"].append([1]), "objects in annotations, got "),
    "fractions of the image": (
        lambda d: each(d, "annotations", bbox=lambda b: [b[0] / 900, b[1] / 400, b[2] / 900, b[3] / 400]),
        "expected boxes in pixels, got fractions",
    ),
    "corners": (
        lambda d: each(d, "annotations", bbox=lambda b: [b[0] + 470, 210, b[0] + 500, 250]),
        "got what looks like two corners",
    ),
    "images null": (lambda d: d.update(images=None), "expected a list of images, got null"),
    "images an object": (lambda d: d.update(images={}), "expected a list of images, got an object"),
    "annotations null": (lambda d: d.update(annotations=None), "expected a list of annotations, got null"),
    "no categories": (
        lambda d: d.pop("categories"),
        "expected the keys annotations, categories, images, got",
    ),
    "no images": (lambda d: d.update(images=[], annotations=[]), "lists no images"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_repaired_is_refused(tmp_path: Path, kind: str) -> None:
    data = sound()
    edit, words = REFUSED[kind]
    edit(data)
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path, data)
    assert caught.value.hint


def test_all_kinds_of_problems_are_in_one_message(tmp_path: Path) -> None:
    data = sound()
    each(data, "annotations", bbox=lambda b: b[:3])
    data["images"][0]["width"] = -1
    data["categories"][0]["name"] = ""
    with pytest.raises(InputError) as caught:
        load(tmp_path, data)
    assert len(caught.value.message.splitlines()) == 4
    assert "and in 19 more" in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "expected the keys .*, got a list"),
        (b"3", "got 3"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_coco(tmp_path / "x.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_fault(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(sound()), encoding=encoding)
    assert len(read_coco(tmp_path / "x.json").annotations) == 20


def test_missing_and_empty_images_are_listed(tmp_path: Path) -> None:
    data = sound(14)
    load(tmp_path, data)
    (tmp_path / "3.png").unlink()
    (tmp_path / "5.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of the 14 images .* or are empty: 3\.png, 5\.png"):
        CocoGroundTruth(tmp_path / "i.json", tmp_path)
    with pytest.raises(InputError, match="14 of the 14") as caught:
        CocoGroundTruth(tmp_path / "i.json", tmp_path / "absent")
    assert "there is no folder" in caught.value.hint
    data["images"][0]["file_name"] = "train/4.png"
    data["images"] = data["images"][:1]
    data["annotations"] = data["annotations"][:10]
    (tmp_path / "i.json").write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        CocoGroundTruth(tmp_path / "i.json", tmp_path)
    assert "the annotations name it train/4.png" in caught.value.hint


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    data = sound()
    each(data, "images", file_name=lambda name: f"train\\{name}")
    assert load(tmp_path, data).images[0].path == tmp_path / "train" / "1.png"


def test_boxes_that_look_wrong_are_noted(tmp_path: Path) -> None:
    data = sound()
    data["annotations"][3]["bbox"] = [880, 10, 30, 30]
    data["annotations"][4]["bbox"][2] = 0
    data["annotations"][5]["area"] = 0
    without(data, "images", "width")
    data["images"][0]["width"] = "900"
    notes = "\n".join(load(tmp_path, data).notes)
    assert "1 of 10 boxes exceed their image by more than 2 pixels, the first [880, 10, 30, 30]" in notes
    assert "1 boxes have no width or no height" in notes
    assert "1 objects have an area of 0" in notes
    assert "1 annotated images have no width and height" in notes


@pytest.mark.parametrize("crowds", [False, True])
def test_ap_without_objects_is_undefined(tmp_path: Path, crowds: bool) -> None:
    data = sound()
    rows = perfect(data)
    if crowds:
        each(data, "annotations", iscrowd=lambda _: 1)
    else:
        data["annotations"] = []
    truth = load(tmp_path, data)
    scores = truth.score(rows)
    figures = {name: value for name, value in scores.to_json().items() if name.startswith("a")}
    assert set(figures.values()) == {None}
    assert "AP and AR are undefined" in truth.notes[-1]
    assert ResampledAp(truth, rows).ap() is None
    with pytest.raises(InputError, match="undefined"):
        paired_drop(truth, rows, rows)


def test_ap_of_a_size_without_objects_is_undefined(tmp_path: Path) -> None:
    scores = load(tmp_path, sound(1, 3)).score(perfect(sound(1, 3)))
    assert (scores.ap, scores.ap_small) == pytest.approx((1.0, 1.0))
    assert (scores.ap_medium, scores.ap_large, scores.ar_large) == (None, None, None)


def test_resamplings_without_objects_are_left_out_of_the_interval(tmp_path: Path) -> None:
    data = sound()
    data["annotations"] = data["annotations"][:10]  # none in the second image, which is often drawn twice
    truth = load(tmp_path, data)
    found = paired_drop(
        truth, perfect(data), [row | {"bbox": [0, 0, 1, 1]} for row in perfect(data)], samples=50
    )
    assert (found.drop, found.low, found.high) == (1.0, 1.0, 1.0)


def spec_of(names: list[str], ids: list[int] | None = None) -> ModelSpec:
    given: dict[str, Any] = {"class_names": names, "category_ids": ids}
    return preset("official").model_copy(update={k: tuple(v) for k, v in given.items() if v is not None})


def test_classes_are_matched_to_categories(tmp_path: Path) -> None:
    data = sound()
    names = ["cat", "dog", "cow"]
    assert check_categories(spec_of(names, [1, 2, 3]), load(tmp_path, data)) == (1, 2, 3)
    each(data, "categories", id=str)
    assert check_categories(spec_of(names, [1, 2, 3]), load(tmp_path, data)) == ("1", "2", "3")
    each(data, "categories", id=lambda i: f"c{i}")
    each(data, "annotations", category_id=lambda i: f"c{i}")
    truth = load(tmp_path, data)
    assert check_categories(spec_of(names, [1, 2, 3]), truth) == ("c1", "c2", "c3")  # by name
    with pytest.raises(InputError, match="expected results of the categories"):
        truth.score(perfect(sound()))


def test_other_categories_are_refused_with_the_line_to_write(tmp_path: Path) -> None:
    data = sound()
    each(data, "categories", id=lambda i: i - 1)
    each(data, "annotations", category_id=lambda i: i - 1)
    truth = load(tmp_path, data)
    names = ["cat", "dog", "cow"]
    with pytest.raises(SpecError, match=r"category ids \[3\] are not in") as caught:
        check_categories(spec_of(names, [1, 2, 3]), truth)
    assert "category_ids = [0, 1, 2]" in caught.value.hint
    # Two of three are exchanged.
    with pytest.raises(SpecError, match=r"2 of the 3 classes .* number 1 is 'cow' in the spec and 'dog'"):
        check_categories(spec_of(["cat", "cow", "dog"], [0, 1, 2]), truth)
    assert check_categories(spec_of(["cat", "hound", "cow"], [0, 1, 2]), truth)  # another word for it
    ids = check_categories(spec_of(["cat", "dog"], [0, 1]), truth)
    (note,) = category_notes(ids, truth)
    assert "1 annotated categories are not in the spec and count with an AP of 0: 2 cow" in note
    data["annotations"] = [row for row in data["annotations"] if row["category_id"] == 2]
    with pytest.raises(SpecError, match="no object of the spec's classes: all are of 2 cow"):
        check_categories(spec_of(["cat", "dog"], [0, 1]), load(tmp_path, data))


def repaired(data: Data) -> Data:
    """What the file means, by rules written out once more: the file that pycocotools is given."""
    images = sorted({str(row["id"]) for row in data["images"]})
    image = {text: number for number, text in enumerate(images, 1)}
    category = {str(row["id"]): number for number, row in enumerate(data["categories"], 1)}
    rows = []
    for number, row in enumerate(data["annotations"], 1):
        _, _, width, height = row["bbox"]
        area = row.get("area")
        rows.append(
            {
                "id": number,
                "image_id": image[str(row["image_id"])],
                "category_id": category[str(row["category_id"])],
                "bbox": row["bbox"],
                "area": width * height if area is None else area,
                "iscrowd": int(str(row.get("iscrowd")) in ("1", "True")),
            }
        )
    return {
        "images": [{"id": n} for n in image.values()],
        "categories": [{"id": n} for n in category.values()],
        "annotations": rows,
    }


def pycocotools_stats(data: Data, results: list[Data]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = data
        truth.createIndex()
        run: Any = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(value) for value in run.stats]


def messy(rng: np.random.Generator) -> tuple[Data, list[Data]]:
    """A file with the habits of some tool, and results with the ids of its images and categories."""
    text_images, text_categories = rng.random(2) < 0.5
    prefix = rng.choice(["", "img"]) if text_images else ""
    images = [f"{prefix}{i}" if text_images else int(i) for i in rng.permutation(40)[: rng.integers(1, 7)]]
    categories = [str(i) if text_categories else int(i) for i in rng.permutation(9)[: rng.integers(1, 4)]]
    id_habit = rng.integers(0, 6)
    crowds, areas, flips = rng.random(3)
    rows: list[Data] = []
    results: list[Data] = []
    for image in images:
        for _ in range(rng.integers(0, 5)):
            x, y, w, h = (float(v) for v in (*rng.uniform(0, 300, 2), *rng.uniform(4, 140, 2)))
            one: Data = {"image_id": image, "category_id": categories[rng.integers(len(categories))]}
            for _ in range(rng.integers(0, 3)):
                near = [x + rng.normal(0, 4), y + rng.normal(0, 4), w * rng.uniform(0.8, 1.25), h]
                results.append({**one, "bbox": near, "score": float(rng.random())})
            for key in ("image_id", "category_id"):  # the other type than in images and categories
                if rng.random() < flips and str(one[key]).isdigit():
                    one[key] = int(one[key]) if isinstance(one[key], str) else str(one[key])
            number = len(rows)
            habits: list[Any] = [number + 1, number, 5, str(number), None, -number]
            row = {**one, "id": habits[id_habit], "bbox": [x, y, w, h]}
            if rng.random() < crowds:
                row["iscrowd"] = [0, 1, False, True, "0", "1", None][rng.integers(7)]
            if rng.random() < areas:
                row["area"] = [w * h * float(rng.uniform(0.3, 1)), None][rng.integers(2)]
            rows.append(row)
    results.append(
        {"image_id": images[0], "category_id": categories[0], "bbox": [500.0, 500, 20, 20], "score": 0.5}
    )
    data = {
        "images": [{"id": i, "file_name": f"{n}.png"} for n, i in enumerate(images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in categories],
        "annotations": rows,
    }
    return data, results


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_are_those_of_pycocotools_on_the_repaired_file(seed: int) -> None:
    data, results = messy(np.random.default_rng(seed))
    plain = repaired(data)
    image = {str(row["id"]): own["id"] for row, own in zip(
        sorted(data["images"], key=lambda one: str(one["id"])), plain["images"], strict=True
    )}  # fmt: skip
    category = {
        str(row["id"]): own["id"] for row, own in zip(data["categories"], plain["categories"], strict=True)
    }
    numbered = [
        row | {"image_id": image[str(row["image_id"])], "category_id": category[str(row["category_id"])]}
        for row in results
    ]
    expected = [None if value < 0 else value for value in pycocotools_stats(plain, numbered)]
    with tempfile.TemporaryDirectory() as folder:
        truth = load(Path(folder), data)
    scores = truth.score(results)
    got = list(scores.to_json().values())[:12]
    assert [value is None for value in got] == [value is None for value in expected]
    assert [value or 0.0 for value in got] == pytest.approx([value or 0.0 for value in expected], abs=1e-12)
    resampled = ResampledAp(truth, results).ap()
    assert (resampled is None) == (scores.ap is None)
    assert (resampled or 0.0) == pytest.approx(scores.ap or 0.0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_scores_are_ranked_as_pycocotools_ranks_them(seed: int) -> None:
    """Of a sound file with numbers as ids: nothing is repaired, so every tie is broken alike."""
    rng = np.random.default_rng(seed)
    data = sound(4, 6)
    order = [int(i) for i in rng.permutation(1000)[:4]]
    each(data, "images", id=lambda i: order[i - 1])
    each(data, "annotations", image_id=lambda i: order[i - 1])
    results = [
        row
        | {
            "bbox": [row["bbox"][0] + rng.normal(0, 6), *row["bbox"][1:]],
            "score": float(rng.integers(1, 3)) / 3,
        }
        for row in perfect(data)
        for _ in range(2)
    ]
    with tempfile.TemporaryDirectory() as folder:
        truth = load(Path(folder), data)
    got = list(truth.score(results).to_json().values())[:12]
    expected = pycocotools_stats(data, results)
    assert [-1 if value is None else value for value in got] == expected
