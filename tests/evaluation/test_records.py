from __future__ import annotations

from pathlib import Path

import pytest

from recipe_hf.evaluation.records import read_record, write_record


def test_a_record_is_read_for_the_same_run_only(tmp_path: Path):
    output = tmp_path / "new" / "record.json"
    settings = {"seeds": (0, 1), "limit": None}
    assert read_record(output, settings) is None
    write_record(output, {"settings": settings, "rows": [1]})
    assert read_record(output, settings) == {"settings": {"seeds": [0, 1], "limit": None}, "rows": [1]}
    with pytest.raises(ValueError, match="holds another run: limit was None, now 5"):
        read_record(output, settings | {"limit": 5})
    assert [path.name for path in output.parent.iterdir()] == ["record.json"]


def test_records_that_say_more_or_less_are_of_other_runs(tmp_path: Path):
    output = tmp_path / "record.json"
    write_record(output, {"settings": {"seed": 0, "old": 1}})
    with pytest.raises(ValueError, match="data was not recorded, as by an older version of recipe-hf, now 5. Choose"):
        read_record(output, {"seed": 0, "old": 1, "data": 5})
    with pytest.raises(ValueError, match="old was 1, now nothing. Choose another file, or delete this one"):
        read_record(output, {"seed": 0})


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', "{"])
def test_other_files_are_refused(tmp_path: Path, text: str):
    output = tmp_path / "record.json"
    output.write_text(text)
    with pytest.raises(ValueError, match="holds no evaluation to resume"):
        read_record(output, {})
    with pytest.raises(ValueError, match=r"must end in \.json"):
        read_record(tmp_path / "record.txt", {})


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "directory.json").mkdir()
    for output in (tmp_path / "file" / "record.json", tmp_path / "directory.json"):
        with pytest.raises(ValueError, match=f"output {output} cannot be written"):
            read_record(output, {})
