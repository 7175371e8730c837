"""A small licence-clean set of pictures: for demonstrations, and as the least that a calibration can start from.

Seven pictures say little about your data: calibrate with 100 to 500 training images of your own.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class SampleImage:
    """A picture that ships: its file in this folder, what it shows, and where it comes from."""

    file: str
    shows: str
    author: str
    licence: str
    source: str
    package: str
    package_path: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the picture lies."""
        return FOLDER / self.file


def sample_images() -> list[SampleImage]:
    """All pictures of the manifest, in its order."""
    rows = tomllib.loads((FOLDER / "manifest.toml").read_text(encoding="utf-8"))["images"]
    return [SampleImage(**row) for row in rows]
