"""What pyproject.toml cannot say: the folders at the top are the sub-packages of centernet_trt, and theirs are found.

The build reads the real folders. The links in src/centernet_trt serve editors and type checkers alone, so that a tree
without links (a zip archive, a checkout on Windows) gives the same wheel.
"""

from setuptools import find_packages, setup

FOLDERS = ("builder", "calib_data", "cli", "engines", "evaluation", "kernels", "runtime")

setup(
    package_dir={"centernet_trt": "src/centernet_trt"} | {f"centernet_trt.{name}": name for name in FOLDERS},
    packages=["centernet_trt"]
    + [
        f"centernet_trt.{name}" for name in find_packages(include=[p for n in FOLDERS for p in (n, f"{n}.*")])
    ],
)
