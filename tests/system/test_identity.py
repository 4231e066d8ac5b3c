"""Laws of a folder's id: made once, whole, the same for all who ask, and of this folder alone wherever it goes."""

import os
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpe_core.system.identity import ID, id_of


def test_all_who_ask_at_once_get_one_id_and_other_folders_have_others(tmp_path, monkeypatch):
    draw, found = uuid.uuid4, set()
    monkeypatch.setattr(uuid, "uuid4", lambda: [time.sleep(0.01), draw()][1])  # time for others to come between
    for number in range(20):
        folder, together = tmp_path / str(number), threading.Barrier(8)
        folder.mkdir()

        def ask(_: int, folder: Path = folder, together: threading.Barrier = together) -> str:
            together.wait()
            return id_of(folder)

        with ThreadPoolExecutor(8) as pool:
            (one,) = {*pool.map(ask, range(8)), id_of(folder)}
        found.add(one)
    assert len(found) == 20 and all(len(one) == 32 for one in found)


def test_it_goes_along_with_the_folder_and_is_not_written_again(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    known = id_of(folder)
    os.chmod(folder / ID, 0o444)
    written = (folder / ID).stat().st_mtime_ns
    shutil.copytree(folder, tmp_path / "b")
    folder.rename(tmp_path / "c")
    assert id_of(tmp_path / "b") == id_of(tmp_path / "c") == known
    assert (tmp_path / "c" / ID).stat().st_mtime_ns == written


def test_one_that_was_cut_off_or_damaged_is_made_anew(tmp_path):
    for torn in ("", "0123", "g" * 32, "0" * 33, "0" * 32 + "\n"):
        (tmp_path / ID).write_text(torn)
        made = id_of(tmp_path)
        assert made == id_of(tmp_path) == (tmp_path / ID).read_text() != torn
