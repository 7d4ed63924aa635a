import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from gapssg.data import load_split
from gapssg.errors import InputError

TRAIN_FILES = [f"data_batch_{number}" for number in range(1, 6)]


def write_pickle(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def random_rows(count: int, seed: int) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (count, 3 * 32 * 32), dtype=numpy.uint8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a few random images in the format of CIFAR, whose md5 sums are not checked."""
    monkeypatch.delenv("GAPSSG_DATA", raising=False)
    ten = tmp_path / "cifar-10-batches-py"
    for number, name in enumerate([*TRAIN_FILES, "test_batch"]):
        write_pickle(ten / name, {"data": random_rows(3, number), "labels": [number, 9, 0]})
    write_pickle(ten / "batches.meta", {"label_names": [f"ten-{label}" for label in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", [(name, None) for name in TRAIN_FILES])
    monkeypatch.setattr(CIFAR10, "test_list", [("test_batch", None)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})

    hundred = tmp_path / "cifar-100-python"
    for number, name in enumerate(["train", "test"]):
        write_pickle(hundred / name, {"data": random_rows(4, number), "fine_labels": [99, 0, 1, 2]})
    write_pickle(hundred / "meta", {"fine_label_names": [f"hundred-{label}" for label in range(100)]})
    monkeypatch.setattr(CIFAR100, "train_list", [("train", None)])
    monkeypatch.setattr(CIFAR100, "test_list", [("test", None)])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": None})
    return tmp_path


def test_cifar10_is_read_with_its_labels_and_class_names(root: Path) -> None:
    train, test = load_split("cifar10", "train", root=root), load_split("cifar10", "test", root=root)
    assert train.labels.tolist() == [0, 9, 0, 1, 9, 0, 2, 9, 0, 3, 9, 0, 4, 9, 0]
    assert torch.equal(test.images, torch.from_numpy(random_rows(3, 5)).view(3, 3, 32, 32))
    assert train.class_names == tuple(f"ten-{label}" for label in range(10))


def test_cifar100_is_read_with_its_fine_labels(root: Path) -> None:
    test = load_split("cifar100", "test", root=root)
    assert torch.equal(test.images, torch.from_numpy(random_rows(4, 1)).view(4, 3, 32, 32))
    assert test.labels.tolist() == [99, 0, 1, 2]
    assert test.num_classes == 100


def test_size_and_channels_can_be_chosen(root: Path) -> None:
    assert load_split("cifar10", "test", root=root, image_size=16, channels=1).input_shape == (1, 16, 16)


def test_the_environment_variable_names_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPSSG_DATA", str(root))
    assert len(load_split("cifar10", "train")) == 15


def test_without_a_root_the_error_names_the_option_and_the_variable(root: Path) -> None:
    with pytest.raises(InputError, match=r"pass --data-root, or set \$GAPSSG_DATA"):
        load_split("cifar10", "train")


def test_missing_files_are_refused_with_the_download_option(root: Path) -> None:
    with pytest.raises(InputError, match=rf"cifar10 in {root / 'nothing'}: add --download"):
        load_split("cifar10", "train", root=root / "nothing")


def test_altered_files_are_never_unpickled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "test_list", [("test_batch", "0" * 32)])
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(InputError, match="no intact copy of cifar10"):
        load_split("cifar10", "train", root=root)


def test_a_failed_download_gives_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: CIFAR10) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(InputError, match=r"could not be downloaded .*no route to host.*check the network"):
        load_split("cifar10", "train", root=root / "nothing", download=True)


def test_existing_files_are_not_downloaded_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "download", lambda _: pytest.fail("downloaded"))
    assert len(load_split("cifar10", "test", root=root, download=True)) == 3


def test_a_downloaded_data_set_is_read_and_nothing_is_printed_to_stdout(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(dataset: CIFAR10) -> None:
        print("Downloading")
        (root / "cifar-10-batches-py").rename(Path(dataset.root) / "cifar-10-batches-py")

    (root / "new").mkdir()
    monkeypatch.setattr(CIFAR10, "download", download)
    assert len(load_split("cifar10", "test", root=root / "new", download=True)) == 3
    assert capsys.readouterr().out == ""
