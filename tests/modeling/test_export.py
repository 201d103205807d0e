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
from tests.tiny_recipe import PROMPTS, UNRELATED, edited_recipe

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


def load(path) -> SentenceTransformer:
    return SentenceTransformer(str(path), trust_remote_code=True, device="cpu")


def test_texts_of_which_it_is_not_known_what_they_are_are_refused(tmp_path):
    exported = export_sentence_transformer(tiny_recipe(), tmp_path / "a")
    loaded = load(tmp_path / "a")
    loaded.save_pretrained(str(tmp_path / "b"), create_model_card=False)
    for model in (exported, loaded, load(tmp_path / "b")):
        for options in ({}, {"prompt": "who is "}):
            with pytest.raises(ValueError, match="Available routes: task='query' and task='document'"):
                model.encode(TEXTS, **options)


def test_a_task_or_a_prompt_of_its_name_says_what_texts_are(tmp_path):
    export_sentence_transformer(tiny_recipe(), tmp_path)
    loaded = load(tmp_path)
    encoded = {"query": loaded.encode_query(TEXTS), "document": loaded.encode_document(TEXTS)}
    for task, expected in encoded.items():
        assert (loaded.encode(TEXTS, task=task) == expected).all()
        assert (loaded.encode(TEXTS, prompt=f"{task}: ") == expected).all()
        assert not (loaded.encode(TEXTS, task=task, prompt="query: ") == expected).all()


def run_example(path, library: str) -> dict:
    """What the example in the exported README.md that imports `library` defines."""
    (example,) = [part for part in (path / "README.md").read_text().split("```") if f"from {library} import" in part]
    scope = {"path": str(path)}
    exec(example.removeprefix("python\n"), scope)
    return scope


def assert_ranked_alike(model: RecipeForCausalLM, queries: list[list[float]], documents: list[list[float]]) -> None:
    """The dot products of vectors are the scores of `model.retrieve`."""
    scores = torch.tensor(queries) @ torch.tensor(documents).T * model.config.scale
    hits = model.retrieve([*PROMPTS, *UNRELATED])
    assert scores.argmax(1).tolist() == [hit.id for hit in hits]
    assert scores.amax(1).tolist() == pytest.approx([hit.score for hit in hits], rel=1e-4)


def test_the_readme_tells_how_to_use_it(tmp_path):
    export_sentence_transformer(tiny_recipe(), tmp_path)
    assert run_example(tmp_path, "sentence_transformers")["scores"].shape == (1, 1)


def test_langchain_ranks_as_the_model_does(tmp_path):
    langchain = pytest.importorskip("langchain_huggingface")
    model = edited_recipe()
    export_sentence_transformer(model, tmp_path)
    unsaid = langchain.HuggingFaceEmbeddings(model_name=str(tmp_path), model_kwargs={"trust_remote_code": True})
    for embed, texts in ((unsaid.embed_query, PROMPTS[0]), (unsaid.embed_documents, PROMPTS)):
        with pytest.raises(ValueError, match="Available routes: task='query' and task='document'"):
            embed(texts)
    embeddings = run_example(tmp_path, "langchain_huggingface")["embeddings"]
    queries = [embeddings.embed_query(text) for text in [*PROMPTS, *UNRELATED]]
    assert_ranked_alike(model, queries, embeddings.embed_documents([fact.statement for fact in model.knowledge]))


def test_llama_index_ranks_as_the_model_does(tmp_path):
    pytest.importorskip("llama_index.embeddings.huggingface")
    model = edited_recipe()
    export_sentence_transformer(model, tmp_path)
    embeddings = run_example(tmp_path, "llama_index.embeddings.huggingface")["embeddings"]
    queries = [embeddings.get_query_embedding(text) for text in [*PROMPTS, *UNRELATED]]
    documents = embeddings.get_text_embedding_batch([fact.statement for fact in model.knowledge])
    assert_ranked_alike(model, queries, documents)


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
