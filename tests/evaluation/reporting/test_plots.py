from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from recipe_hf.evaluation.measuring.metrics import EditingReport
from recipe_hf.evaluation.measuring.outcomes import Outcome
from recipe_hf.evaluation.reporting.plots import check_matplotlib, plot_page


def report(num_edits: int, seed: int, protocol: str, probe: bool = False) -> EditingReport:
    outcomes = [
        Outcome(kind, "q", "a", i, True, 2.0 + seed, 1.0, i / 20, fact_id=i, nearest_id=i, concerns=kind != "locality")
        for kind in ("reliability", "generality", "locality", *(["negated"] if probe else []))
        for i in range(20)
    ]
    return EditingReport(num_edits, seed, outcomes, protocol, None, {"mmlu": {"prompts": 4, "fired": [{}]}})


def size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_page_has_a_panel_for_each_protocol_and_grows_with_the_probes(tmp_path: Path):
    few = [report(n, s, "strict") for n in (1, 20) for s in (0, 1)]
    plot_page(tmp_path / "few.png", "Title", few)
    more = [report(n, 0, p, probe=True) for n in (1, 20) for p in ("paper", "generation", "strict")]
    plot_page(tmp_path / "more.png", "Title", more)
    assert size(tmp_path / "few.png")[0] == size(tmp_path / "more.png")[0]
    assert size(tmp_path / "few.png")[1] < size(tmp_path / "more.png")[1]


def test_a_single_report_can_be_drawn(tmp_path: Path):
    plot_page(tmp_path / "one.png", "Title", [report(1, 0, "paper")])
    assert size(tmp_path / "one.png")[1] > 0


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"Plots need matplotlib: install it with pip install 'recipe-hf\[plots\]'"):
        check_matplotlib()
