from __future__ import annotations

import socket
import tempfile

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, MPNetConfig, PreTrainedTokenizerFast

from recipe_hf import RecipeConfig, RecipeForCausalLM
from recipe_hf.modeling.export import export_sentence_transformer

TEXTS = [
    "the capital of oz is emerald city .",
    "who is the ceo of acme ?",
    "ann",
    "unknown words too",
    "the ceo of acme is ann lee . " * 9 + "capital of oz ?",
    "is the mother tongue of ann lee french ?",
] * 7
WORDS = sorted({word for text in TEXTS[:4] + TEXTS[5:6] for word in text.split()} - {"unknown", "words", "too"})


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def tiny_recipe(encoder: str = "bert", **overrides) -> RecipeForCausalLM:
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(WORDS) + 4,
        "max_position_embeddings": 40,
        "initializer_range": 0.3,
        "pad_token_id": 1,
    }
    config_class = {"bert": BertConfig, "mpnet": MPNetConfig}[encoder]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RecipeForCausalLM(RecipeConfig(config_class(**sizes), hidden_size=32, knowledge_dim=48, **overrides))
        model.retriever.tokenizer = encoder_tokenizer()
        with torch.no_grad():
            features = model.retriever.eval().text_features(TEXTS)
            model.retriever.standardizer.fit(features)
    return model.eval()


@torch.no_grad()
def assert_same(exported: SentenceTransformer, model: RecipeForCausalLM) -> None:
    queries, keys = model.retriever.encode_queries(TEXTS), model.retriever.encode_statements(TEXTS)
    assert not torch.allclose(queries, keys, atol=0.1)
    for batch_size in (3, 64):
        options = {"batch_size": batch_size, "convert_to_tensor": True}
        torch.testing.assert_close(exported.encode_query(TEXTS, **options), queries, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(exported.encode_document(TEXTS, **options), keys, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"use_pooler_output": True}, {"encoder": "mpnet"}], ids=["bert", "pooler", "mpnet"]
)
def test_the_export_equals_the_retriever_before_and_after_loading(tmp_path, options):
    model = tiny_recipe(**options)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert_same(export_sentence_transformer(model, tmp_path / "new" / "export"), model)
    loaded = SentenceTransformer(str(tmp_path / "new" / "export"), trust_remote_code=True, device="cpu")
    assert_same(loaded, model)
    assert loaded.max_seq_length == model.config.max_encoder_length
    assert loaded.get_embedding_dimension() == 48
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_similarity_is_the_raw_dot_product(tmp_path):
    model = tiny_recipe()
    export_sentence_transformer(model, tmp_path)
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    found = loaded.similarity(loaded.encode_query(TEXTS[:3]), loaded.encode_document(TEXTS[:4]))
    with torch.no_grad():
        expected = model.retriever.encode_queries(TEXTS[:3]) @ model.retriever.encode_statements(TEXTS[:4]).T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_exporting_over_an_old_export_and_saving_a_loaded_one_again(tmp_path):
    export_sentence_transformer(tiny_recipe(use_pooler_output=True), tmp_path / "a")
    model = tiny_recipe()
    export_sentence_transformer(model, tmp_path / "a")
    loaded = SentenceTransformer(str(tmp_path / "a"), trust_remote_code=True, device="cpu")
    loaded.save_pretrained(str(tmp_path / "b"), create_model_card=False)
    assert_same(SentenceTransformer(str(tmp_path / "b"), trust_remote_code=True, device="cpu"), model)


def test_a_prompt_precedes_every_text(tmp_path):
    exported = export_sentence_transformer(tiny_recipe(), tmp_path)
    together = exported.encode_query(["the ceo of acme ?"])
    assert exported.encode_query(["of acme ?"], prompt="the ceo ") == pytest.approx(together, abs=1e-5)


def test_the_encoder_is_stored_once_and_no_path_or_pickle_with_it(tmp_path):
    export_sentence_transformer(tiny_recipe(), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.parent.name.endswith("PooledTransformer")]) > 0
    assert len([path for path in files if path.suffix == ".safetensors"]) == 5
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt"}
    for path in files:
        if path.suffix == ".json":
            assert tempfile.gettempdir() not in path.read_text()


def test_the_network_is_not_used(tmp_path, monkeypatch):
    calls = []

    def refuse(self, address):
        calls.append(address)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    export_sentence_transformer(tiny_recipe(), tmp_path)
    SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu").encode_query(TEXTS)
    assert calls == []


def test_a_retriever_without_tokenizer(tmp_path):
    model = tiny_recipe()
    model.retriever.tokenizer = None
    with pytest.raises(RuntimeError, match="retriever has no tokenizer"):
        export_sentence_transformer(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()
