"""Continuous prompt tokens beside word embeddings, in two dimensions (Figure 4 of the paper)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...datasets import EditExample
from ...knowledge.facts import compose_statement
from .plots import check_matplotlib

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")


@torch.no_grad()
def collect_embeddings(
    model: RecipeForCausalLM, facts: Sequence[EditExample], num_words: int = 2000, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """What the picture shows.

    Returns:
        Continuous prompts of the statements `[len(facts), l, d_llm]`; the word embeddings of the tokens in the facts'
        statements `[n, d_llm]`, each token once; and those of `num_words` tokens of the vocabulary, drawn by `seed`.
    """
    if model.tokenizer is None:
        raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
    statements = [compose_statement(fact.prompt, fact.answer) for fact in facts]
    prompts, _ = model.continuous_prompts(model.encode_statements(statements), [None] * len(statements))
    embeddings: Any = model.get_input_embeddings()
    tokens = model.tokenizer(statements, add_special_tokens=False)["input_ids"]
    own = sorted({token for row in tokens for token in row})
    size = embeddings.weight.shape[0]
    drawn = random.Random(seed).sample(range(size), min(num_words, size))
    words = [embeddings(torch.tensor(ids, device=model.device)).float().cpu() for ids in (own, drawn)]
    return prompts.float().cpu(), words[0], words[1]


def project(points: Tensor, method: str, seed: int = 0) -> Tensor:
    """Points `[n, d]` in two dimensions, `[n, 2]`.

    Args:
        points: The points.
        method: `pca`, or `tsne` with scikit-learn's own settings.
        seed: Seed of t-SNE.

    Raises:
        ValueError: If the method is another.
    """
    if method == "pca":
        centred = points.double() - points.double().mean(0)
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        return (centred @ axes[:2].T).float()
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        return torch.from_numpy(TSNE(perplexity=perplexity, random_state=seed).fit_transform(points.numpy()))
    raise ValueError(f"method must be pca or tsne, got {method!r}.")


def plot_prompts(path: str | Path, prompts: Tensor, own_words: Tensor, words: Tensor, title: str) -> dict[str, Any]:
    """Draws prompt tokens and word embeddings, by principal components and by t-SNE.

    Args:
        path: File to write; its suffix says the format.
        prompts: Continuous prompts, `[n, l, d_llm]`.
        own_words: Word embeddings of the facts' own tokens, `[m, d_llm]`.
        words: Word embeddings of other tokens, `[k, d_llm]`.
        title: Title of the page.

    Returns:
        The median norms of what is shown.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, length, _ = prompts.shape
    groups = {
        f"{len(words):,} tokens of the vocabulary": words,
        f"tokens of the {count:,} facts": own_words,
        **{f"prompt token {i + 1}": prompts[:, i] for i in range(length)},
    }
    points = torch.cat(list(groups.values()))
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    for number, (method, heading) in enumerate((("pca", "principal components"), ("tsne", "t-SNE")), start=1):
        axes = figure.add_subplot(1, 2, number)
        axes.set_title(heading, fontsize=11)
        placed = project(points, method).split([len(group) for group in groups.values()])
        for (name, part), colour in zip(
            zip(groups, placed, strict=True), ("#bbbbbb", "#555555", *_COLOURS), strict=False
        ):
            axes.scatter(part[:, 0], part[:, 1], s=6, color=colour, label=name, alpha=0.7, linewidths=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(fontsize=8, markerscale=3, framealpha=0.8)
    figure.savefig(str(path), dpi=110)
    return {name: round(group.norm(dim=1).median().item(), 3) for name, group in groups.items()}
