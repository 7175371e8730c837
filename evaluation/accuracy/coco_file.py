"""Reader of COCO instances files as tools write them: `CocoFile`, repaired and checked before anything is run.

Ids are matched as written, or as the number that they spell (`"7"`, `7`, `7.0`); annotations are numbered anew, because
pycocotools takes an annotation id of 0 for "no match". A missing `iscrowd` is 0. A missing `area` is width x height of the
box, as pycocotools computes it for results with a box (`COCO.loadRes`); a segmentation is not used. Everything else that is
wrong is an error, all kinds of it in one message.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError

__all__ = [
    "CocoFile",
    "CocoId",
    "IdTable",
    "first_names",
    "has_content",
    "image_path",
    "read_coco",
    "spells_number",
]

CocoId = int | str
"""Id of an image or category as the file has it."""
Row = dict[str, Any]

_LARGEST = 1e9
"""Numbers of a box are below this; it also excludes NaN and infinities."""
_BEYOND = 2.0
"""Pixels by which a box may exceed its image without a note: annotators round."""
_NUMBER = re.compile(r"\s*([+-]?\d{1,18})(?:\.0*)?\s*", re.ASCII)


class IdTable:
    """The ids of one list of a file; a number and its text are the same id where that is unambiguous."""

    def __init__(self, ids: Iterable[CocoId]) -> None:
        """Index ids, which must differ."""
        # Ties of equal scores are broken by the order of the ids: this is the order of pycocotools.
        ordered = sorted(ids, key=lambda one: (isinstance(one, str), one))
        self.keys: dict[CocoId, int] = {one: number for number, one in enumerate(ordered, 1)}
        """Positive integers by id, in the order of the ids; pycocotools works with these."""
        self._spelled: dict[CocoId, list[CocoId]] = {}
        for one in ordered:
            self._spelled.setdefault(_spelled(one), []).append(one)

    def find(self, value: Any) -> CocoId | None:
        """The id that a reference means, as its own list has it; None if there is none, or if it is ambiguous."""
        clean = _clean_id(value)
        if clean is None or clean in self.keys:
            return clean
        possible = self._spelled.get(_spelled(clean), [])
        return possible[0] if len(possible) == 1 else None


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


class _Problems:
    """What is wrong with a file: one line for each kind, with its first example."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, expected: str, got: object, place: str) -> None:
        first, count = self._found.get(expected, (f"got {_short(got)} in {place}", 0))
        self._found[expected] = (first, count + 1)

    def check(self, path: Path) -> None:
        """Raise InputError if there are any."""
        if not self._found:
            return
        lines = [
            f"expected {kind}, {first}" + (f" and in {count - 1} more" if count > 1 else "")
            for kind, (first, count) in self._found.items()
        ]
        text = lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)
        raise InputError(f"{path}: {text}", "correct or remove these rows, or export the file again")


def read_coco(path: Path, *, labels: bool = True) -> CocoFile:
    """Read, repair and check a COCO file; its images are not looked for.

    Args:
        path: the instances file, JSON.
        labels: False to read nothing but the file names of its images, for which it needs no ids.

    Raises:
        InputError: not a readable COCO file, or one that cannot be repaired without a guess.
    """
    data = _read_json(path, {"images", "annotations", "categories"} if labels else {"images"})
    problems, repairs = _Problems(), Counter[str]()
    names, sizes = _images(_rows(data, "images", path, problems), labels, problems, repairs)
    if not labels:
        problems.check(path)
        return CocoFile(path, names, {}, {}, [], _notes(path, repairs, []))
    categories = _categories(_rows(data, "categories", path, problems), problems, repairs)
    reader = _AnnotationReader(IdTable(names), IdTable(categories), problems, repairs)
    annotations = [
        made
        for place, row in _rows(data, "annotations", path, problems)
        if (made := reader.read(place, row)) is not None
    ]
    problems.check(path)
    return CocoFile(
        path, names, sizes, categories, annotations, _notes(path, repairs, _doubts(path, annotations, sizes))
    )


def image_path(folder: Path, name: str) -> Path:
    """Path of a listed image; backslashes separate folders unless a file has them in its name."""
    path = folder / name
    return path if "\\" not in name or has_content(path) else folder / name.replace("\\", "/")


def has_content(path: Path) -> bool:
    """Whether a path is a file with something in it."""
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:  # such as a name that is too long, or a folder that may not be read
        return False


def first_names(paths: Sequence[Path]) -> str:
    """The names of the first ten files, for a message."""
    return ", ".join(path.name for path in paths[:10]) + ", ..." * (len(paths) > 10)


def spells_number(value: CocoId) -> bool:
    """Whether an id is a number, or the text of one."""
    return isinstance(_spelled(value), int)


def _read_json(path: Path, wanted: set[str]) -> Row:
    try:
        data = json.loads(path.read_bytes())  # of bytes: any UTF, with a byte order mark or without
    except OSError as error:
        raise InputError(f"cannot read the annotations {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or not wanted <= data.keys():
        got = f"the keys {', '.join(map(_short, list(data)[:8]))}" if isinstance(data, dict) else _kind(data)
        raise InputError(
            f"{path} is not a COCO instances file: expected the keys {', '.join(sorted(wanted))}, got {got}",
            "a list is a results file; the instances file is the one with the annotations",
        )
    return data


def _rows(data: Row, key: str, path: Path, problems: _Problems) -> list[tuple[str, Row]]:
    """The rows of a list of the file, each with its place for messages."""
    if not isinstance(data[key], list):
        raise InputError(
            f"{path} is not a COCO instances file: expected a list of {key}, got {_kind(data[key])}",
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
    rows: list[tuple[str, Row]], labels: bool, problems: _Problems, repairs: Counter[str]
) -> tuple[dict[CocoId, str], dict[CocoId, tuple[float, float]]]:
    """File names and sizes by image id."""
    names: dict[CocoId, str] = {}
    sizes: dict[CocoId, tuple[float, float]] = {}
    rows_by_id: dict[CocoId, list[tuple[CocoId, str]]] = {}
    ids_by_file: dict[str, CocoId] = {}
    for place, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip("\0 "):
            keys = "only " + ", ".join(map(str, row)) if "file_name" not in row else _short(name)
            problems.add("a file_name in every row of images", _Verbatim(keys), place)
            if (nameless := _clean_id(row.get("id"))) is not None:
                names.setdefault(nameless, "")  # so that its annotations are not reported too
            continue
        own = _clean_id(row.get("id")) if labels else len(names)
        if own is None:
            problems.add("an id (a number or text) in every row of images", row.get("id"), place)
            continue
        file = posixpath.normpath(name.replace("\\", "/"))
        same_id = [other for same, other in rows_by_id.get(_spelled(own), []) if _clash(own, same)]
        if file in same_id or (not labels and file in ids_by_file):
            repairs["repeated rows of images left out"] += 1
        elif same_id:
            problems.add(
                "one image for each image id", _Verbatim(f"{own!r} for {same_id[0]!r} and {file!r}"), place
            )
        elif file in ids_by_file:
            both = f"{file!r} with the ids {ids_by_file[file]!r} and {own!r}"
            problems.add("every file_name once (join the rows and their annotations)", _Verbatim(both), place)
        else:
            names[own] = name
            ids_by_file[file] = own
            rows_by_id.setdefault(_spelled(own), []).append((own, file))
            if labels and (size := _size(row, place, problems)) is not None:
                sizes[own] = size
    return names, sizes


def _size(row: Row, place: str, problems: _Problems) -> tuple[float, float] | None:
    """Width and height; None if they are missing, which some tools write as 0."""
    found = []
    for key in ("width", "height"):
        value = row.get(key)
        if isinstance(value, str) and (match := _NUMBER.fullmatch(value)):
            value = int(match[1])
        if not value and not isinstance(value, (str, list, dict)):
            return None
        if not _is_number(value) or value < 0:
            problems.add("a positive width and height of every image, or none", row.get(key), place)
            return None
        found.append(float(value))
    return found[0], found[1]


def _categories(rows: list[tuple[str, Row]], problems: _Problems, repairs: Counter[str]) -> dict[CocoId, str]:
    """Names by category id."""
    names: dict[CocoId, str] = {}
    rows_by_id: dict[CocoId, list[tuple[CocoId, str]]] = {}
    for place, row in rows:
        own, name = _clean_id(row.get("id")), row.get("name")
        if own is None:
            problems.add("an id (a number or text) in every row of categories", row.get("id"), place)
            continue
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name.strip():
            problems.add("a name in every row of categories", name, place)
            names.setdefault(own, "")  # so that its annotations are not reported too
            continue
        same_id = [other for same, other in rows_by_id.get(_spelled(own), []) if _clash(own, same)]
        if name in same_id:
            repairs["repeated rows of categories left out"] += 1
        elif same_id:
            got = f"{own!r} for {same_id[0]!r} and {name!r}"
            problems.add("one category for each category id", _Verbatim(got), place)
        else:
            names[own] = name
            rows_by_id.setdefault(_spelled(own), []).append((own, name))
    return names


class _AnnotationReader:
    """Reads one annotation after the other; counts repairs, collects problems."""

    def __init__(
        self, images: IdTable, categories: IdTable, problems: _Problems, repairs: Counter[str]
    ) -> None:
        self._images, self._categories = images, categories
        self._problems, self._repairs = problems, repairs
        self._ids: set[Any] = set()
        self._count = 0

    def read(self, place: str, row: Row) -> Row | None:
        """The annotation as pycocotools needs it, with the file's own ids; None after a problem."""
        self._count += 1
        self._note_id(row.get("id"))
        image = self._reference(self._images, row, "image", "image_id that images lists", place)
        category = self._reference(
            self._categories,
            row,
            "category",
            "category ids of annotations to be listed in categories",
            place,
        )
        box = row.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            self._problems.add("bbox to be [x, y, width, height], four finite numbers", box, place)
            return None
        if box[2] < 0 or box[3] < 0:
            self._problems.add(
                "bbox to be [x, y, width, height] with no negative width or height", box, place
            )
            return None
        area, crowd = self._area(row, place), self._crowd(row.get("iscrowd"), place)
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

    def _reference(self, table: IdTable, row: Row, what: str, expected: str, place: str) -> CocoId | None:
        value = row.get(f"{what}_id")
        found = table.find(value)
        if found is None:
            self._problems.add(expected, value, place)
        elif type(found) is not type(value):
            self._repairs[f"{what} ids of annotations of another type than those of {what} rows matched"] += 1
        elif found != value:
            self._repairs[f"{what} ids of annotations written in another way matched by number"] += 1
        return found

    def _area(self, row: Row, place: str) -> float | None:
        area, (_, _, width, height) = row.get("area"), row["bbox"]
        if area is None:
            self._repairs["missing area taken as width x height of the box"] += 1
            return float(width * height)
        if (type(area) is float or type(area) is int) and 0 <= area < _LARGEST**2:
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


def _doubts(path: Path, annotations: list[Row], sizes: dict[CocoId, tuple[float, float]]) -> list[str]:
    """Notes on boxes that look wrong; InputError if they are certainly not x, y, width, height in pixels."""
    if annotations and all(_inside_unit_square(row["bbox"]) for row in annotations):
        raise InputError(
            f"{path}: expected boxes in pixels, got fractions of the image: all of the {len(annotations)} lie in 0..1, "
            f"such as {annotations[0]['bbox']}",
            "multiply x and width by the image's width, y and height by its height",
        )
    empty = sum(not (row["bbox"][2] and row["bbox"][3]) for row in annotations)
    sized = [(row["bbox"], sizes[row["image_id"]]) for row in annotations if row["image_id"] in sizes]
    beyond = [box for box, size in sized if _beyond(box, size)]
    if 2 * len(beyond) > len(sized) and all(_fits_as_corners(box, size) for box, size in sized):
        raise InputError(
            f"{path}: expected boxes [x, y, width, height], got what looks like two corners: {len(beyond)} of "
            f"{len(sized)} boxes exceed their image, such as {beyond[0]}, and none does as [x1, y1, x2, y2]",
            "write bbox as [x1, y1, x2 - x1, y2 - y1]",
        )
    notes = []
    if beyond:
        notes.append(
            f"{len(beyond)} of {len(sized)} boxes exceed their image by more than {_BEYOND:g} pixels, the first {beyond[0]}"
        )
    if empty:
        notes.append(
            f"{empty} boxes have no width or no height: nothing matches them, yet they count as objects"
        )
    if unsized := len({row["image_id"] for row in annotations} - sizes.keys()):
        notes.append(
            f"{unsized} annotated images have no width and height in the file: boxes not checked against them"
        )
    return notes


def _notes(path: Path, repairs: Counter[str], doubts: list[str]) -> tuple[str, ...]:
    done = "; ".join(f"{what} ({count})" for what, count in repairs.items())
    said = [f"{path.name}: repaired while reading (the file stays as it is): {done}"] if repairs else []
    return (*said, *(f"{path.name}: {line}" for line in doubts))


def _inside_unit_square(box: list[float]) -> bool:
    x, y, width, height = box
    return x >= 0 and y >= 0 and x + width <= 1.01 and y + height <= 1.01 and width > 0


def _beyond(box: list[float], size: tuple[float, float]) -> bool:
    x, y, width, height = box
    return bool(min(x, y) < -_BEYOND or x + width > size[0] + _BEYOND or y + height > size[1] + _BEYOND)


def _fits_as_corners(box: list[float], size: tuple[float, float]) -> bool:
    left, top, right, bottom = box
    return left < right <= size[0] + _BEYOND and top < bottom <= size[1] + _BEYOND


def _is_number(value: Any) -> bool:
    return (type(value) is float or type(value) is int) and -_LARGEST < value < _LARGEST


def _clean_id(value: Any) -> CocoId | None:
    """An id as the file has it; None if it is no id."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        return None
    return value


def _spelled(value: CocoId) -> CocoId:
    """The number that an id spells, or the id itself."""
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        return int(match[1]) if match else value.strip()
    return value


def _clash(one: CocoId, other: CocoId) -> bool:
    """Whether two ids that spell the same are one id: `"07"` and `"7"` are two, `7` and `"7"` are one."""
    return one == other or type(one) is not type(other)


class _Verbatim(str):
    """Text that a message shows as it is."""


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value) if isinstance(value, _Verbatim) else repr(value)
    return text if len(text) <= 90 else text[:87] + "..."


def _kind(value: object) -> str:
    return {list: "a list", dict: "an object", type(None): "null"}.get(type(value), _short(value))
