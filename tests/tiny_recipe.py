"""Tiny RECIPE models for tests: byte-level tokenizers, a random BERT, heads fitted so that known prompts fire."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from recipe_hf import RecipeForCausalLM, Retrieval
from recipe_hf.modeling.verifier import Verifier
from tests.tiny import tiny_causal_lm

FACTS = [
    ("The CEO of Acme is", "Ann Lee"),
    ("The capital of Ruritania is", "Strelsau"),
    ("Zork was written by", "Infocom"),
    ("The river through Gotham is the", "Sprang"),
]
PROMPTS = [prompt for prompt, _ in FACTS]
UNRELATED = ["Two plus two makes", "Once upon a time", "Water boils at", "Dogs are", "A poem about rain:"]
MIXED = [PROMPTS[0], UNRELATED[0], PROMPTS[2], UNRELATED[1]]
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BASE_TOKENS = ["<pad>", "<|im_start|>", "<|im_end|>"]
MAX_ENCODER_LENGTH = 96


def byte_tokenizer(special_tokens: list[str], **kwargs: Any) -> PreTrainedTokenizerFast:
    """One token for each byte, after the special tokens."""
    names = special_tokens + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if "<bos>" in special_tokens:
        bos = [("<bos>", names.index("<bos>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=bos)
    if "[CLS]" in special_tokens:
        ids = [(name, names.index(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


def base_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """The base's tokenizer, with a ChatML template, padding on the left."""
    pad, start, end = BASE_TOKENS
    return byte_tokenizer(
        BASE_TOKENS, pad_token=pad, bos_token=start, eos_token=end, padding_side="left", chat_template=chat_template
    )


def bos_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a base that begins every text with a token of its own; as many tokens as `base_tokenizer`."""
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return byte_tokenizer([*names.values()], **names, padding_side="left", chat_template=chat_template)


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """The encoder's tokenizer."""
    return byte_tokenizer(["[PAD]", "[CLS]", "[SEP]"], pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def tiny_base(architecture: str = "llama", seed: int = 0, **overrides: Any) -> Any:
    """A random causal LM with room for byte tokens."""
    length = {"n_positions": 512} if architecture in ("gpt2", "gptj") else {"max_position_embeddings": 512}
    return tiny_causal_lm(architecture, seed, vocab_size=len(base_tokenizer()), **length, **overrides)


def tiny_encoder(seed: int = 0) -> BertModel:
    """A random BERT."""
    config = BertConfig(
        vocab_size=len(encoder_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_ENCODER_LENGTH,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertModel(config).eval()


def untrained_recipe(architecture: str = "llama", base: Any = None, **kwargs: Any) -> RecipeForCausalLM:
    """A RECIPE model with random heads, whose prompts are as large as word embeddings."""
    sizes = {"knowledge_dim": 64, "num_continuous_prompt_tokens": 3, "num_sentinel_tokens": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RecipeForCausalLM.from_base_pretrained(
            tiny_base(architecture) if base is None else base,
            tiny_encoder(),
            tokenizer=base_tokenizer(),
            encoder_tokenizer=encoder_tokenizer(),
            **sizes | kwargs,
        )
        if model.prompt_encoder is not None:
            torch.nn.init.normal_(model.prompt_encoder.output.weight, std=0.2)
    return model


def tiny_recipe(architecture: str = "llama", base: Any = None, **kwargs: Any) -> RecipeForCausalLM:
    """A RECIPE model in which each of `PROMPTS` fires its fact, and none of `UNRELATED` fires any."""
    model = untrained_recipe(architecture, base, **kwargs)
    model.retriever.load_state_dict(_fitted_retriever())
    return model


def edited_recipe(architecture: str = "llama", base: Any = None) -> RecipeForCausalLM:
    """The same, with `FACTS` added: their ids are 0 to 3."""
    model = tiny_recipe(architecture, base)
    model.add_knowledge(FACTS)
    return model


def verified_recipe(offset: float = 0.0, of_logit: float = 0.0, of_margin: float = 0.0) -> RecipeForCausalLM:
    """An edited model whose verifier gives the probability sigmoid(offset + of_logit * head + of_margin * margin)."""
    model = edited_recipe()
    model.config.num_verified_facts = 4
    model.config.verifier_margin = 1e6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.verifier = Verifier(model.config).eval()
    model.verifier.calibration.copy_(torch.tensor([offset, of_logit, of_margin]))
    return model


@functools.cache
def _fitted_retriever() -> dict[str, torch.Tensor]:
    retriever = untrained_recipe().retriever
    statements = [f"{prompt} {answer}" for prompt, answer in FACTS]
    with torch.no_grad():
        features = retriever.text_features(statements + PROMPTS + UNRELATED)
        retriever.standardizer.fit(features)
        features = retriever.standardizer(features)
    targets = torch.tensor([*range(len(FACTS)), *[len(FACTS)] * len(UNRELATED)])
    heads = [*retriever.mlp_k.parameters(), *retriever.mlp_q.parameters()]
    optimizer = torch.optim.Adam(heads, 0.01)
    for _ in range(40):
        keys = torch.cat([retriever.mlp_k(features[: len(FACTS)]), retriever.encode_sentinel()[None]])
        loss = F.cross_entropy(retriever.mlp_q(features[len(FACTS) :]) @ keys.T / 8, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return retriever.state_dict()


def batch_of(model: RecipeForCausalLM, texts: list[str], side: str = "left") -> Any:
    """Token ids and mask of `texts`, padded on `side`."""
    model.tokenizer.padding_side = side
    return model.tokenizer(texts, return_tensors="pt", padding=True)


def row_by_row(model: RecipeForCausalLM, texts: list[str], new_tokens: int = 6) -> torch.Tensor:
    """Greedy continuations by an independent loop: every row alone, its prompt concatenated to its embeddings."""
    rows = []
    for text in texts:
        ids = model.tokenizer(text)["input_ids"]
        embeds = model.lm.get_input_embeddings()(torch.tensor([ids]))
        (hit,) = model.retrieve(text)
        if hit.fired:
            prompt = model.prompt_encoder(model.knowledge.keys([hit.id]))
            embeds = torch.cat([prompt.detach(), embeds], 1)
        new = []
        for _ in range(new_tokens):
            new.append(model.lm(inputs_embeds=embeds).logits[0, -1].argmax().item())
            embeds = torch.cat([embeds, model.lm.get_input_embeddings()(torch.tensor([[new[-1]]]))], 1)
        rows.append(new)
    return torch.tensor(rows)


def assert_same(hits: list[Retrieval], expected: list[Retrieval]) -> None:
    """The same facts fire, with the same scores but for rounding."""
    assert [(hit.id, hit.statement, hit.fired) for hit in hits] == [(h.id, h.statement, h.fired) for h in expected]
    for name in ("score", "threshold"):
        assert [getattr(h, name) for h in hits] == pytest.approx([getattr(h, name) for h in expected], rel=1e-4)
