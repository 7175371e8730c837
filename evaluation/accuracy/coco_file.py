"""Reader of COCO instances files as tools write them: `CocoFile`, repaired and checked before anything is run.

Ids are matched as written, or as the number that they spell (`"7"`, `7`, `7.0`); annotations are numbered anew, because
pycocotools takes an annotation id of 0 for "no match". A missing `iscrowd` is 0. A missing `area` is width x height of the
box, as pycocotools computes it for results with a box (`COCO.loadRes`); a segmentation is not used. Everything else that is
wrong is an error, all kinds of it in one message.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.coco_boxes import LARGEST, check_boxes, is_number
from centernet_trt.evaluation.accuracy.coco_ids import (
    CocoId,
    IdTable,
    clean_id,
    is_same_id,
    spelled,
    spells_number,
    whole_number,
)
from centernet_trt.evaluation.accuracy.coco_problems import Problems, Verbatim, kind_of, short

__all__ = ["CocoFile", "read_coco"]

Row = dict[str, Any]


@dataclass(frozen=True)
class CocoFile:
    """Content of a COCO file.

    Attributes:
        path: the file.
        names: `file_name` of every image, by image id; by row number if the file was read without labels.
        sizes: width and height by image id, of the images that have them.
        categories: names by category id.
        annotations: the annotations with `id` (from 1), `image_id` and `category_id` (as `names` and `categories` have
            them), `bbox` ([x, y, width, height] in pixels), `area` and `iscrowd`.
        notes: for the user: what was repaired, and what looks wrong.
    """

    path: Path
    names: dict[CocoId, str]
    sizes: dict[CocoId, tuple[float, float]]
    categories: dict[CocoId, str]
    annotations: list[Row]
    notes: tuple[str, ...]


def read_coco(path: Path, *, labels: bool = True) -> CocoFile:
    """Read, repair and check a COCO file; its images are not looked for.

    Args:
        path: the instances file, JSON.
        labels: False to read nothing but the file names of its images, for which it needs no ids.

    Raises:
        InputError: not a readable COCO file, or one that cannot be repaired without a guess.
    """
    data = _read_json(path, {"images", "annotations", "categories"} if labels else {"images"})
    problems, repairs = Problems(), Counter[str]()
    names, sizes = _images(_rows(data, "images", path, problems), labels, problems, repairs)
    if not labels:
        problems.check(path)
        return CocoFile(path, names, {}, {}, [], _notes(path, repairs, []))
    categories = _categories(_rows(data, "categories", path, problems), problems, repairs)
    reader = _AnnotationReader(IdTable(names, names), IdTable(categories, categories), problems, repairs)
    annotations = [
        made
        for place, row in _rows(data, "annotations", path, problems)
        if (made := reader.read(place, row)) is not None
    ]
    problems.check(path)
    return CocoFile(
        path,
        names,
        sizes,
        categories,
        annotations,
        _notes(path, repairs, check_boxes(path, annotations, sizes)),
    )


def _read_json(path: Path, wanted: set[str]) -> Row:
    try:
        data = json.loads(path.read_bytes())  # of bytes: any UTF, with a byte order mark or without
    except OSError as error:
        raise InputError(f"cannot read the annotations {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or not wanted <= data.keys():
        got = f"the keys {', '.join(map(short, list(data)[:8]))}" if isinstance(data, dict) else kind_of(data)
        raise InputError(
            f"{path} is not a COCO instances file: expected the keys {', '.join(sorted(wanted))}, got {got}",
            "a list is a results file; the instances file is the one with the annotations",
        )
    return data


def _rows(data: Row, key: str, path: Path, problems: Problems) -> list[tuple[str, Row]]:
    """The rows of a list of the file, each with its place for messages."""
    if not isinstance(data[key], list):
        raise InputError(
            f"{path} is not a COCO instances file: expected a list of {key}, got {kind_of(data[key])}",
            f"write {key} as a list of objects, empty if there are none",
        )
    found = []
    for number, row in enumerate(data[key]):
        if isinstance(row, dict):
            found.append((f"{key}[{number}]", row))
        else:
            problems.add(f"objects in {key}", row, f"{key}[{number}]")
    return found


def _images(
    rows: list[tuple[str, Row]], labels: bool, problems: Problems, repairs: Counter[str]
) -> tuple[dict[CocoId, str], dict[CocoId, tuple[float, float]]]:
    """File names and sizes by image id."""
    names: dict[CocoId, str] = {}
    sizes: dict[CocoId, tuple[float, float]] = {}
    rows_by_id: dict[CocoId, list[tuple[CocoId, str]]] = {}
    ids_by_file: dict[str, CocoId] = {}
    for place, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip("\0 "):
            keys = "only " + ", ".join(map(str, row)) if "file_name" not in row else short(name)
            problems.add("a file_name in every row of images", Verbatim(keys), place)
            if (nameless := clean_id(row.get("id"))) is not None:
                names.setdefault(nameless, "")  # so that its annotations are not reported too
            continue
        own = _own_id(row, name, "image", repairs) if labels else len(names)
        if own is None:
            problems.add("an id (a number or text) in every row of images", row.get("id"), place)
            continue
        file = posixpath.normpath(name.replace("\\", "/"))
        same_id = [other for same, other in rows_by_id.get(spelled(own), []) if is_same_id(own, same)]
        if file in same_id or (not labels and file in ids_by_file):
            repairs["repeated rows of images left out"] += 1
        elif same_id:
            problems.add(
                "one image for each image id", Verbatim(f"{own!r} for {same_id[0]!r} and {file!r}"), place
            )
        elif file in ids_by_file:
            both = f"{file!r} with the ids {ids_by_file[file]!r} and {own!r}"
            problems.add("every file_name once (join the rows and their annotations)", Verbatim(both), place)
            names.setdefault(own, "")
        else:
            names[own] = name
            ids_by_file[file] = own
            rows_by_id.setdefault(spelled(own), []).append((own, file))
            if labels and (size := _size(row, place, problems)) is not None:
                sizes[own] = size
    return names, sizes


def _own_id(row: Row, name: str, what: str, repairs: Counter[str]) -> CocoId | None:
    """Id of an image or category; if missing, its name, unless that could be taken for a number."""
    if row.get("id") is None:
        if spells_number(name):
            return None
        repairs[f"missing {what} ids taken from the name"] += 1
        return name
    return clean_id(row["id"])


def _size(row: Row, place: str, problems: Problems) -> tuple[float, float] | None:
    """Width and height; None if they are missing, which some tools write as 0."""
    found: list[float] = []
    for key in ("width", "height"):
        value: Any = row.get(key)
        if isinstance(value, str) and (number := whole_number(value)) is not None:
            value = number
        if value is None or (value == 0 and value is not False):
            return None
        if not is_number(value) or value < 0:
            problems.add("a positive width and height of every image, or none", value, place)
            return None
        found.append(float(value))
    return found[0], found[1]


def _categories(rows: list[tuple[str, Row]], problems: Problems, repairs: Counter[str]) -> dict[CocoId, str]:
    """Names by category id."""
    names: dict[CocoId, str] = {}
    rows_by_id: dict[CocoId, list[tuple[CocoId, str]]] = {}
    for place, row in rows:
        name = row.get("name")
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name.strip():
            problems.add("a name in every row of categories", name, place)
            if (nameless := clean_id(row.get("id"))) is not None:
                names.setdefault(nameless, "")  # so that its annotations are not reported too
            continue
        own = _own_id(row, name, "category", repairs)
        if own is None:
            problems.add("an id (a number or text) in every row of categories", row.get("id"), place)
            continue
        same_id = [other for same, other in rows_by_id.get(spelled(own), []) if is_same_id(own, same)]
        if name in same_id:
            repairs["repeated rows of categories left out"] += 1
        elif same_id:
            got = f"{own!r} for {same_id[0]!r} and {name!r}"
            problems.add("one category for each category id", Verbatim(got), place)
        else:
            names[own] = name
            rows_by_id.setdefault(spelled(own), []).append((own, name))
    return names


class _AnnotationReader:
    """Reads one annotation after the other; counts repairs, collects problems."""

    def __init__(
        self, images: IdTable, categories: IdTable, problems: Problems, repairs: Counter[str]
    ) -> None:
        self._images, self._categories = images, categories
        self._problems, self._repairs = problems, repairs
        self._ids: set[Any] = set()
        self._count = 0

    def read(self, place: str, row: Row) -> Row | None:
        """The annotation as pycocotools needs it, with the file's own ids; None after a problem."""
        self._count += 1
        self._note_id(row.get("id"))
        image = self._reference(self._images, row, "image", place)
        category = self._reference(self._categories, row, "category", place)
        box = self._box(row.get("bbox"))
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            self._problems.add("bbox to be [x, y, width, height], four finite numbers", box, place)
            return None
        if box[2] < 0 or box[3] < 0:
            self._problems.add(
                "bbox to be [x, y, width, height] with no negative width or height", box, place
            )
            return None
        area, crowd = self._area(row.get("area"), box, place), self._crowd(row.get("iscrowd"), place)
        if image is None or category is None or area is None or crowd is None:
            return None
        return {
            "id": self._count,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }

    def _note_id(self, value: Any) -> None:
        """Count an id that pycocotools could not use; every annotation is numbered anew in any case."""
        if value is None:
            kind = "missing"
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            kind = "non-numeric"
        elif value == 0:
            kind = "zero"
        elif value in self._ids:
            kind = "repeated"
        else:
            self._ids.add(value)
            return
        self._repairs[f"{kind} annotation ids numbered anew"] += 1

    def _reference(self, table: IdTable, row: Row, what: str, place: str) -> CocoId | None:
        value = row.get(f"{what}_id")
        found = table.find(value)
        if found is None:
            plural = {"image": "images", "category": "categories"}[what]
            expected = f"{what} ids of annotations to be among those of {plural} ({_first_of(table.keys)})"
            self._problems.add(expected, value, place)
        elif isinstance(found, str) != isinstance(value, str):
            self._repairs[f"{what} ids of annotations of another type than those of {what} rows matched"] += 1
        elif found != value and clean_id(value) in table.by_name:
            self._repairs[f"{what} names in annotations instead of ids matched"] += 1
        elif found != value:
            self._repairs[f"{what} ids of annotations written in another way matched by number"] += 1
        return found

    def _box(self, box: Any) -> Any:
        """The box with numbers for the text of numbers."""
        if not isinstance(box, list) or not any(isinstance(value, str) for value in box):
            return box
        try:
            numbers = [float(value) if isinstance(value, str) else value for value in box]
        except ValueError:
            return box
        self._repairs["boxes with text of numbers read as numbers"] += 1
        return numbers

    def _area(self, area: Any, box: list[float], place: str) -> float | None:
        if area is None:
            self._repairs["missing area taken as width x height of the box"] += 1
            return float(box[2] * box[3])
        if (type(area) is float or type(area) is int) and 0 <= area < LARGEST**2:
            return float(area)
        self._problems.add("area to be a number of at least 0, or missing", area, place)
        return None

    def _crowd(self, value: Any, place: str) -> int | None:
        if type(value) is int and 0 <= value <= 1:
            return value
        if value is None:
            self._repairs["missing iscrowd taken as 0"] += 1
            return 0
        known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
        if (flag := known.get(str(value).strip().lower())) is None:
            self._problems.add("iscrowd to be 0 or 1", value, place)
        else:
            self._repairs["iscrowd that is no number read as one"] += 1
        return flag


def _notes(path: Path, repairs: Counter[str], doubts: list[str]) -> tuple[str, ...]:
    done = "; ".join(f"{what} ({count})" for what, count in repairs.items())
    said = [f"{path.name}: repaired while reading (the file stays as it is): {done}"] if repairs else []
    return (*said, *(f"{path.name}: {line}" for line in doubts))


def _first_of(ids: Collection[CocoId]) -> str:
    """The first ids, for a message."""
    return ", ".join(map(repr, list(ids)[:8])) + ", ..." * (len(ids) > 8)
