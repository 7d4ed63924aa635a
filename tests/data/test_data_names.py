import subprocess
import sys
from pathlib import Path

import pytest

from gapssg.data import check_data_name, flipping_is_meaningful, load_split
from gapssg.errors import InputError


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "folder:images", "folder:C:/images"])
def test_valid_names_are_returned_as_they_are(name: str) -> None:
    assert check_data_name(name) == name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digit", "digits"),
        ("cifar-10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("folder", "folder:PATH"),
        ("foldr:/images", "folder:PATH"),
        ("digits:/images", "digits"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"'{name}'.*did you mean {nearest}"):
        check_data_name(name)


def test_a_name_similar_to_none_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match=r"'qqq'; valid are digits, cifar10, cifar100, folder:PATH"):
        check_data_name("qqq")


def test_a_bare_path_is_refused_with_its_folder_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"did you mean folder:{tmp_path}"):
        check_data_name(str(tmp_path))


@pytest.mark.parametrize("name", ["folder:", "folder: "])
def test_a_folder_without_a_path_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="has no path; write it as folder:PATH"):
        check_data_name(name)


def test_loading_and_flipping_refuse_unknown_names_too() -> None:
    with pytest.raises(InputError, match="'digit'"):
        load_split("digit", "train")
    with pytest.raises(InputError, match="'digit'"):
        flipping_is_meaningful("digit")


def test_flipping_is_meaningful_for_all_but_digits() -> None:
    names = ("digits", "cifar10", "cifar100", "folder:images")
    assert [flipping_is_meaningful(name) for name in names] == [False, True, True, True]


def test_importing_the_package_imports_neither_torch_nor_the_readers() -> None:
    program = (
        "import sys, gapssg.data; gapssg.data.check_data_name('folder:x'); "
        "print({'torch', 'torchvision', 'PIL', 'sklearn', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
