"""The trained retriever as a sentence-transformers pipeline, for search engines and tools that speak that format."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from torch import nn

from .retriever import FeatureStandardizer, ResidualMLP, Retriever, tokenize

_README = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [recipe, knowledge-editing, sentence-transformers]
---

# Retriever of a RECIPE model

Maps statements to keys (the route `document`) and prompts to query vectors (the route `query`), which are compared by
dot product: they are not of length one, so normalising them, or a vector store that compares by cosine or distance,
gives another order. It needs `pip install recipe-hf`, whose modules it uses.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(path, trust_remote_code=True)
keys = model.encode_document(["The CEO of Acme is Ann Lee."])
queries = model.encode_query(["Who is the CEO of Acme?"])
scores = model.similarity(queries, keys)
```

Plain `model.encode(texts)` is refused, as it does not say which of the two the texts are: `task="query"` or
`task="document"` does.

With LangChain (without `query_encode_kwargs`, it takes `encode_kwargs` for queries too):

```python
from langchain_huggingface import HuggingFaceEmbeddings

embeddings = HuggingFaceEmbeddings(
    model_name=path,
    model_kwargs={"trust_remote_code": True},
    encode_kwargs={"task": "document"},
    query_encode_kwargs={"task": "query"},
)
```

With LlamaIndex, which passes prompts rather than tasks (these two name the route, and are no part of the text):

```python
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

embeddings = HuggingFaceEmbedding(
    model_name=path,
    trust_remote_code=True,
    normalize=False,
    query_instruction="query: ",
    text_instruction="document: ",
)
```
"""
_TASK_OF_PROMPT = {"query: ": "query", "document: ": "document"}


class QueryDocumentRouter(Router):
    """A router with the routes `query` and `document`, of which none is the default.

    The prompt `"query: "` or `"document: "` without a task names the route, for libraries that pass prompts alone.
    """

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokenises as the route's first module does.

        Raises:
            ValueError: If neither a task nor a prompt names the route.
        """
        if task is None and (named := _TASK_OF_PROMPT.get(prompt or "")):
            prompt, task = None, named
        return super().preprocess(inputs, prompt, task, *args, **kwargs)


class PooledTransformer(Transformer):
    """The text encoder `f_rm`: a transformer whose token outputs are pooled by max, min and mean (paper eq. 6).

    Args:
        model_name_or_path: As in `Transformer`, which also takes `kwargs`.
        use_pooler_output: Whether the encoder's pooler output joins the pooled features.
        **kwargs: As in `Transformer`.
    """

    config_keys = [*Transformer.config_keys, "use_pooler_output"]

    def __init__(self, model_name_or_path: str, use_pooler_output: bool = False, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.use_pooler_output = use_pooler_output

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, *args: Any, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokenises as the retriever does: of a text too long, a query keeps its end and a document its start."""
        texts = [(prompt or "") + text for text in inputs]
        tokenizer: Any = self.tokenizer
        ids = tokenize(tokenizer, texts, tokenizer.model_max_length, keep="end" if task == "query" else "start")
        return dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt"))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, `[batch, num_features]`."""
        mask = features["attention_mask"]
        outputs = self.model(input_ids=features["input_ids"], attention_mask=mask)
        pooled = Retriever.pool(outputs.last_hidden_state, mask)
        if self.use_pooler_output:
            pooled = torch.cat([pooled, outputs.pooler_output], dim=-1)
        return {**features, "token_embeddings": outputs.last_hidden_state, "sentence_embedding": pooled}


def export_sentence_transformer(model: Any, path: str | os.PathLike[str]) -> SentenceTransformer:
    """Writes the trained retriever to a directory as a sentence-transformers model.

    `encode_query` gives `r_q` and `encode_document` gives `r_k` of `model.retriever`, to within 1e-5, and `encode`
    without a task is refused. Load it with `SentenceTransformer(path, trust_remote_code=True)`, where recipe-hf is
    installed. Its README.md says how LangChain and LlamaIndex do.

    Args:
        model: A `RecipeForCausalLM`, or anything else with a [`Retriever`] as `retriever`. It is not changed.
        path: The directory.

    Returns:
        The model that was written, on the CPU.

    Raises:
        RuntimeError: If the retriever has no tokenizer.
    """
    retriever: Retriever = model.retriever
    if retriever.tokenizer is None:
        raise RuntimeError("The retriever has no tokenizer: load the model with from_pretrained.")
    with tempfile.TemporaryDirectory() as directory:
        retriever.encoder.save_pretrained(directory)
        retriever.tokenizer.save_pretrained(directory)
        encoder = PooledTransformer(
            directory,
            use_pooler_output=retriever.use_pooler_output,
            max_seq_length=retriever.max_length,
        )
    router = QueryDocumentRouter.for_query_document(
        query_modules=[encoder, *_head(retriever.standardizer, retriever.mlp_q)],
        document_modules=[encoder, *_head(retriever.standardizer, retriever.mlp_k)],
        default_route=None,
        allow_empty_key=False,
    )
    exported = SentenceTransformer(modules=[router], similarity_fn_name="dot", device="cpu").eval()
    exported.save_pretrained(os.fspath(path), create_model_card=False)
    (Path(path) / "README.md").write_text(_README)
    return exported


@torch.no_grad()
def _head(standardizer: FeatureStandardizer, mlp: ResidualMLP) -> list[Dense]:
    """`mlp(standardizer(features))` as two layers: the standardisation is part of the first one's weights."""
    weight, bias, mean, std = (
        tensor.detach().cpu().double()
        for tensor in (mlp.input.weight, mlp.input.bias, standardizer.mean, standardizer.std)
    )
    weight = weight / std
    bias = bias - weight @ mean
    first = Dense(weight.shape[1], weight.shape[0], activation_function=None, init_weight=weight.float())
    first.linear.bias.copy_(bias)
    second = Dense(weight.shape[0], weight.shape[0], activation_function=nn.ReLU(), use_residual=True)
    second.linear.load_state_dict({name: value.cpu() for name, value in mlp.residual.state_dict().items()})
    return [first, second]
