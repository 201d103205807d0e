from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.reporting.prompt_plot import collect_embeddings, plot_prompts, project
from tests.tiny_evaluation import EXAMPLES, model


def test_prompts_and_words_are_those_of_the_facts():
    prompts, own, words = collect_embeddings(model(), EXAMPLES[:2], num_words=7)
    with torch.no_grad():
        keys = model().retriever.encode_statements([f"{e.prompt} {e.answer}" for e in EXAMPLES[:2]])
        expected = model().prompt_encoder(keys)
    torch.testing.assert_close(prompts, expected)
    tokens = {t for e in EXAMPLES[:2] for t in model().tokenizer(f"{e.prompt} {e.answer}")["input_ids"]}
    weights = model().lm.get_input_embeddings().weight
    torch.testing.assert_close(own, weights[sorted(tokens)])
    assert words.shape == (7, weights.shape[1])
    assert torch.equal(words, collect_embeddings(model(), EXAMPLES[:2], num_words=7)[2])


def test_principal_components_keep_the_plane_that_points_lie_in():
    flat = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0])
    axes = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(1)))[0]
    placed = project(flat @ axes.T + 4, "pca")
    torch.testing.assert_close(torch.cdist(placed, placed), torch.cdist(flat, flat), atol=1e-4, rtol=1e-4)
    assert placed[:, 0].std() > placed[:, 1].std()


def test_neighbours_stay_neighbours_under_tsne():
    near = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    placed = project(torch.cat([near, near + 50]), "tsne")
    distances = torch.cdist(placed, placed).fill_diagonal_(torch.inf)
    assert ((distances.argmin(1) < 30) == (torch.arange(60) < 30)).all()


def test_another_method():
    with pytest.raises(ValueError, match="method must be pca or tsne, got 'umap'"):
        project(torch.eye(3), "umap")


def test_picture_says_the_norms(tmp_path: Path):
    prompts, own, words = collect_embeddings(model(), EXAMPLES, num_words=9)
    norms = plot_prompts(tmp_path / "prompts.png", prompts, own, words, "Title")
    assert (tmp_path / "prompts.png").read_bytes().startswith(b"\x89PNG")
    assert list(norms) == [
        "9 tokens of the vocabulary",
        "tokens of the 4 facts",
        *(f"prompt token {i}" for i in (1, 2, 3)),
    ]
    assert norms["prompt token 2"] == pytest.approx(prompts[:, 1].norm(dim=1).median().item(), abs=1e-3)
