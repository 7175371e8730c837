"""Files of torch.save: every layout of tensors, and hostile files, none of whose code runs."""

import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import BOTH, Write, bf16, equal, parts, read_checkpoint, refused, weights
from helpers.pth_writer import Parameter, Part, Raw, call, tensor, write_pth


@BOTH
def test_other_types(tmp_path: Path, write: Write) -> None:
    values = {name: value for name, value in weights().items() if value.dtype == np.float32}
    half = {f"{name}.f2": value.astype(np.float16) for name, value in values.items()}
    double = {f"{name}.f8": value.astype(np.float64) for name, value in values.items()}
    brain = {f"{name}.bf": bf16(value) for name, value in values.items()}
    found = read_checkpoint(write(tmp_path / "a.pth", parts({**half, **double, **brain}))).tensors
    for name, value in values.items():
        np.testing.assert_array_equal(found[f"{name}.f2"], value.astype(np.float16))
        np.testing.assert_array_equal(found[f"{name}.f8"], value)
        assert found[f"{name}.bf"].dtype == np.float32
        np.testing.assert_allclose(found[f"{name}.bf"], value, rtol=2**-7)


def test_the_other_byte_order(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "a.pth", parts(weights()), order="big")
    equal(read_checkpoint(path).tensors, weights())


@BOTH
def test_views_strides_and_shared_storages(tmp_path: Path, write: Write) -> None:
    storage = np.arange(24, dtype=np.float32)
    value = {
        "whole": Part(storage, (24,), (1,), key="s"),
        "transposed": Part(storage, (4, 3, 2), (1, 8, 4), key="s"),
        "tail": Part(storage, (2, 3), (3, 1), offset=18, key="s"),
        "scalar": Part(storage, (), (), offset=5, key="s"),
        "empty": Part(storage, (0, 3), (3, 1), key="s"),
    }
    found = read_checkpoint(write(tmp_path / "a.pth", value)).tensors
    np.testing.assert_array_equal(found["whole"], storage)
    np.testing.assert_array_equal(found["transposed"], storage.reshape(3, 2, 4).transpose(2, 0, 1))
    np.testing.assert_array_equal(found["tail"], storage[18:].reshape(2, 3))
    assert found["scalar"] == 5
    assert found["empty"].shape == (0, 3)
    assert all(array.flags.c_contiguous for array in found.values())


@BOTH
def test_parameters(tmp_path: Path, write: Write) -> None:
    values = {"a": np.ones(3, np.float32), "b": np.arange(4, dtype=np.float32)}
    saved = {name: Parameter(tensor(value)) for name, value in values.items()}
    equal(read_checkpoint(write(tmp_path / "a.pth", saved)).tensors, values)


class _WritesAFile:
    """Its pickle, loaded by Python, writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_writes_no_file(tmp_path: Path, protocol: int, zipped: bool) -> None:
    target = tmp_path / "owned"
    attack = pickle.dumps({"state_dict": _WritesAFile(target)}, protocol)
    pickle.loads(attack)
    assert target.exists()  # the attack works on Python's own unpickler
    target.unlink()
    path = tmp_path / "a.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", attack)
    else:
        path.write_bytes(attack)
    if zipped or protocol >= 2:
        refused(path, "asks Python to call", "system", "nothing in it was executed")
    else:  # torch.save never wrote protocol 0 or 1
        refused(path, "has no known checkpoint format")
    assert not target.exists()


@BOTH
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("posix", "system"),
        ("runpy", "run_path"),
        ("shutil", "rmtree"),
    ],
)
def test_calls_of_the_standard_library_are_refused(
    tmp_path: Path, write: Write, module: str, name: str
) -> None:
    value = {"state_dict": parts(weights()), "extra": call(module, name, "1/0")}
    refused(write(tmp_path / "a.pth", value), f"{module}.{name}")


def test_names_of_installed_packages_are_not_imported(tmp_path: Path) -> None:
    module = tmp_path / "evil_on_import.py"
    module.write_text(f"open({str(tmp_path / 'owned')!r}, 'w').close()")
    sys.path.insert(0, str(tmp_path))
    try:
        value = {"state_dict": parts(weights()), "extra": call("evil_on_import", "anything")}
        equal(read_checkpoint(write_pth(tmp_path / "a.pth", value)).tensors, weights())
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "owned").exists()
    assert "evil_on_import" not in sys.modules


def test_state_given_to_a_name_changes_nothing(tmp_path: Path) -> None:
    # BUILD on a global: Python's unpickler would set attributes of the real object.
    attack = Raw(b"cos\npath\n}(X\x03\x00\x00\x00sepX\x01\x00\x00\x00!ub")
    read_checkpoint(write_pth(tmp_path / "a.pth", {"state_dict": parts(weights()), "extra": attack}))
    assert os.path.sep != "!"


def test_deep_nesting_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    deep = Raw(b"}(" + b")" + b"\x85" * 500_000 + b"Nu")  # a dictionary key: hashing it would recurse
    value = {"extra": deep, "state_dict": parts(weights())}
    equal(read_checkpoint(write_pth(tmp_path / "a.pth", value)).tensors, weights())


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "a.pth", parts({"w": np.zeros(1 << 16, np.float32)}))
    data = path.read_bytes()
    # Point twenty entries of the directory at the same bytes.
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("archive/data/0")
    entries = data[start:end]
    at = entries.index(b"archive/data/0") - 46
    one = entries[at : at + 46 + len("archive/data/0")]
    copies = b"".join(one.replace(b"data/0", b"data/%c" % letter) for letter in b"abcdefghijklmnopqrst")
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 24, 24, len(entries + copies), start, 0)
    path.write_bytes(data[:start] + entries + copies + tail)
    assert info.file_size * 20 > path.stat().st_size
    refused(path, "its members claim")


@BOTH
def test_truncated_files(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "a.pth", parts(weights()))
    data = path.read_bytes()
    for length in range(4, len(data) - 1, 37):
        path.write_bytes(data[:length])
        refused(path)
    path.write_bytes(data)
    equal(read_checkpoint(path).tensors, weights())


@pytest.mark.parametrize(
    "part",
    [
        Part(np.zeros(4, np.float32), (5,), (1,)),
        Part(np.zeros(4, np.float32), (2, 2), (4, 1)),
        Part(np.zeros(4, np.float32), (1,), (1,), offset=4),
        Part(np.zeros(4, np.float32), (1 << 20, 1 << 20), (0, 0)),
        Part(np.zeros(4, np.float32), (-1,), (1,)),
        Part(np.zeros(4, np.float32), (2,), (-1,)),
        Part(np.zeros(4, np.float32), (2, 2), (1,)),
    ],
)
@BOTH
def test_tensors_outside_their_storage(tmp_path: Path, write: Write, part: Part) -> None:
    refused(write(tmp_path / "a.pth", {"w": part}))


def test_files_of_torch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is no dependency")
    values = {name: torch.from_numpy(value) for name, value in weights().items()}
    strided = values["conv.weight"].permute(1, 2, 3, 0)
    expected = {
        **weights(),
        "strided": weights()["conv.weight"].transpose(1, 2, 3, 0),
        "parameter": weights()["bn.bias"],
    }
    saved = {**values, "strided": strided, "parameter": torch.nn.Parameter(values["bn.bias"])}
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save({"state_dict": saved, "epoch": 1}, path, _use_new_zipfile_serialization=zipped)
        equal(read_checkpoint(path).tensors, expected)
