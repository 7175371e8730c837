"""Files of the images that a COCO file lists."""

from collections.abc import Sequence
from pathlib import Path

from centernet_trt.errors import InputError

__all__ = ["check_files", "first_names", "has_content", "image_path"]


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


def check_files(paths: Sequence[Path], annotations: Path, folder: Path) -> None:
    """Raise InputError, listing the images without a file, or if there are no images."""
    if not paths:
        raise InputError(f"{annotations} lists no images", "give annotations that list images")
    missing = [path for path in paths if not has_content(path)]
    if not missing:
        return
    hint = "give the folder that holds the images, and annotations that list only those"
    if not folder.is_dir():
        hint = f"there is no folder {folder}: {hint}"
    elif has_content(folder / missing[0].name) and missing[0] != folder / missing[0].name:
        hint = (
            f"the folder has {missing[0].name}, but the annotations name it "
            f"{missing[0].relative_to(folder) if missing[0].is_relative_to(folder) else missing[0]}: "
            "give the folder that those names start from, or correct file_name"
        )
    raise InputError(
        f"{len(missing)} of the {len(paths)} images that {annotations} lists are not in {folder}, or are empty: "
        f"{first_names(missing)}",
        hint,
    )
