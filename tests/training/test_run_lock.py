"""Two processes never write to one run folder."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from googlenet.config.parse import read_recipe
from googlenet.files import lock_file, unlock_at_end
from googlenet.training import setup
from googlenet.training.setup import check_folder, create_folder

HOLD = """
import sys
from pathlib import Path
from googlenet.files import lock_file
print(lock_file(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(path: Path) -> Iterator[str]:
    """Lock a file in another process; yield what `lock_file` returned there."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.kill()


def test_a_file_belongs_to_one_process_until_its_end(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.touch()
    with other_process(path) as result:
        assert result == "True"
        with unlock_at_end():
            assert not lock_file(path)
    with unlock_at_end():
        assert lock_file(path), "a killed process leaves no lock"
        with other_process(path) as result:
            assert result == "False"
    with other_process(path) as result:
        assert result == "True"


def test_a_missing_file_locks_nothing(tmp_path: Path) -> None:
    assert lock_file(tmp_path / "missing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resuming", [False, True])
def test_a_folder_in_which_another_process_trains_is_rejected(resuming: bool, tmp_path: Path) -> None:
    recipe, folder = read_recipe("fashion-mnist-smoke"), tmp_path / "run"
    folder.mkdir()
    (folder / "environment.json").write_text("{}")
    match = f"^{folder}: another process trains in this folder; wait for its end"
    with other_process(folder / "environment.json"), unlock_at_end(), pytest.raises(ValueError, match=match):
        create_folder(folder, recipe, {}, resuming)
    assert [path.name for path in folder.iterdir()] == ["environment.json"]


def test_of_two_starts_at_the_same_time_one_wins(tmp_path: Path) -> None:
    """Both have checked the empty folder before one of them creates the run, for loading the data takes minutes."""
    recipe, folder = read_recipe("fashion-mnist-smoke"), tmp_path / "run"
    assert [check_folder(folder, recipe, False), check_folder(folder, recipe, "auto")] == [False, False]
    with unlock_at_end():
        create_folder(folder, recipe, {"command": "first"}, False)
    for _ in range(2):
        with unlock_at_end(), pytest.raises(ValueError, match="another process trains in this folder"):
            create_folder(folder, replace(recipe, seed=7), {"command": "second"}, False)
    assert setup.read_run_recipe(folder) == recipe
    assert json.loads((folder / "environment.json").read_text()) == {"command": "first"}
    with unlock_at_end():
        create_folder(folder, recipe, {}, True)
