from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

import recipe_hf.training
from recipe_hf.datasets import DataSource
from recipe_hf.training.config import StageConfig, TrainingConfig

DIRECTORY = Path(recipe_hf.training.__file__).parent / "configs"
# The verifier's is of another trainer (tests/training/verification/test_config.py).
CONFIGS = sorted(path for path in DIRECTORY.glob("*.yaml") if path.stem != "verifier")
STAGE = {"name": "joint", "steps": 5, "contrastive_batch_size": 8, "editing_batch_size": 4}
RUN = {"base_model": "base", "train_file": "cf.json", "output_dir": "out", "stages": [STAGE]}


def read(tmp_path: Path, run: Any = None, stage: Any = None, **overrides: Any) -> TrainingConfig:
    """Reads `RUN` with changes, after a trip through a file."""
    values = RUN | (run or {})
    if stage is not None:
        values["stages"] = [STAGE | stage]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return TrainingConfig.from_yaml(tmp_path / "run.yaml", **overrides)


def test_there_are_shipped_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_loads(path: Path):
    config = TrainingConfig.from_yaml(path)
    assert config.num_steps == sum(stage["steps"] for stage in yaml.safe_load(path.read_text())["stages"])
    sources = config.train_file if isinstance(config.train_file, list) else [config.train_file]
    paths = [config.base_model, *(DataSource.parse(source).path for source in sources)]
    assert not any(Path(part).is_absolute() for part in paths)


def test_values_reach_their_fields(tmp_path: Path):
    config = read(tmp_path, {"seed": 7, "hinge_scale": 2}, {"loss_weights": {"locality": 0.5}, "encoder_layers": 2})
    assert (config.seed, config.hinge_scale, config.base_model, config.knowledge_dim) == (7, 2, "base", 1024)
    assert config.stages == (
        StageConfig(
            "joint",
            5,
            contrastive_batch_size=8,
            editing_batch_size=4,
            loss_weights={"locality": 0.5},
            encoder_layers=2,
        ),
    )
    assert (config.stages[0].weight("locality"), config.stages[0].weight("reliability")) == (0.5, 1.0)
    assert (config.stages[0].batch_size, config.num_steps) == (8, 5)


def test_sentinel_and_prompts_follow_the_learning_rate_unless_they_have_their_own(tmp_path: Path):
    stage = read(tmp_path, stage={"learning_rate": 0.5, "prompt_learning_rate": 0.0}).stages[0]
    assert (stage.sentinel_learning_rate, stage.prompt_learning_rate) == (0.5, 0.0)


def test_defaults_are_the_papers():
    assert StageConfig("s", 1, editing_batch_size=8).learning_rate == 1e-5
    config = TrainingConfig("b", "t", "o", (StageConfig("s", 1, editing_batch_size=8),))
    assert (config.temperature, config.hinge_scale, config.num_sentinel_tokens) == (1.0, None, 10)
    assert config.num_continuous_prompt_tokens == 3


def test_overrides_replace_values_unless_none(tmp_path: Path):
    config = read(tmp_path, output_dir="elsewhere", seed=3, encoder=None)
    assert (config.output_dir, config.seed) == ("elsewhere", 3)
    assert config.encoder == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("run", "stage", "message"),
    [
        ({"learning_rate": 1.0}, None, "unknown keys learning_rate; allowed are base_model"),
        (None, {"batch_size": 8, "epochs": 1}, "stages: unknown keys batch_size, epochs"),
        ({5: 1}, None, "unknown keys 5"),
        (None, {"steps": -1}, "steps of stage 'joint' must be an integer of at least 0, got -1"),
        (None, {"steps": "5"}, "steps of stage 'joint' must be an integer, got '5'"),
        (None, {"steps": 0}, "steps of all stages together must be at least 1, got 0"),
        (None, {"warmup_steps": 2.5}, "warmup_steps of stage 'joint' must be an integer, got 2.5"),
        (None, {"contrastive_batch_size": 0, "editing_batch_size": 0}, "batch sizes of stage 'joint' must be above 0"),
        (
            None,
            {"editing_batch_size": 9},
            "editing_batch_size of stage 'joint' must be at most contrastive.* 8, got 9",
        ),
        (None, {"prompts": "both"}, "prompts of stage 'joint' must be one of statement, answer, known_answer, got"),
        (None, {"prompts": "known_answer"}, "contrastive_batch_size of stage 'joint' must be 0 with prompts: known"),
        (
            None,
            {"prompts": "known_answer", "contrastive_batch_size": 0},
            "num_answer_prompt_tokens must be above 0 for stage 'joint', got 0",
        ),
        ({"num_answer_prompt_tokens": -1}, None, "num_answer_prompt_tokens must be an integer of at least 0, got -1"),
        (None, {"mined_negatives": -1}, "mined_negatives of stage 'joint' must be an integer of at least 0, got -1"),
        ({"mining_steps": 0}, None, "mining_steps must be an integer of at least 1, got 0"),
        ({"rewording_share": 2}, None, "rewording_share must be between 0 and 1, got 2"),
        (
            {"other_property_share": 0.75, "unrelated_text_share": 0.5, "unrelated_texts_file": "t"},
            None,
            "unrelated_text_share must be between 0 and 0.25, got 0.5",
        ),
        (
            {"unrelated_text_share": 0.5},
            None,
            "unrelated_texts_file must be a path with unrelated_text_share, got None",
        ),
        (
            {"checkpoint": "c", "encoder_revision": "v1"},
            None,
            "encoder_revision must be null with a checkpoint, got 'v1'",
        ),
        (
            {"checkpoint": "c"},
            {"prompts": "answer", "contrastive_batch_size": 0},
            "prompts of stage 'joint' must be others with a checkpoint, got 'answer'",
        ),
        (None, {"learning_rate": -0.1}, "learning_rate of stage 'joint' must be a number of at least 0, got -0.1"),
        (None, {"encoder_learning_rate": float("nan")}, "encoder_learning_rate of stage 'joint' must be a finite"),
        (None, {"learning_rate": float("inf")}, "learning_rate of stage 'joint' must be a finite number.* got inf"),
        (None, {"name": None}, "name of stage None must be a non-empty text, got None"),
        (None, {"lr_scheduler_type": ["cosine"]}, "lr_scheduler_type .* must be one of cosine, constant, got"),
        (None, {"sentinel_learning_rate": -1}, "sentinel_learning_rate of stage 'joint' must be a number"),
        (None, {"encoder_layers": 0}, "encoder_layers of stage 'joint' must be an integer of at least 1, got 0"),
        (None, {"answer_variants": 0}, "answer_variants of stage 'joint' must be an integer of at least 1, got 0"),
        (None, {"loss_weights": {"local": 1.0}}, r"loss_weights of stage 'joint' must be among .* got \['local'\]"),
        (None, {"loss_weights": ["locality"]}, "loss_weights of stage 'joint' must be a mapping"),
        (
            None,
            {"loss_weights": {"locality": "x"}},
            "loss_weights .* each value a finite number, got {'locality': 'x'}",
        ),
        (None, {"loss_weights": {"locality": -1}}, "weight of locality of stage 'joint' must be a number of at least"),
        ({"answer_resampling": 1.5}, None, "answer_resampling must be between 0 and 1, got 1.5"),
        ({"subject_share": -0.5}, None, "subject_share must be between 0 and 1, got -0.5"),
        ({"subject_share": None}, None, "subject_share must be a finite number, got None"),
        ({"gradient_accumulation_steps": 0}, None, "gradient_accumulation_steps must be an integer of at least 1"),
        ({"early_stopping_patience": 0}, None, "early_stopping_patience must be an integer of at least 1, got 0"),
        ({"push_to_hub": True}, None, "hub_model_id must be a repository id such as"),
        ({"save_steps": 0}, None, "save_steps must be an integer of at least 1, got 0"),
        ({"num_eval_questions": 0}, None, "num_eval_questions must be an integer of at least 1, got 0"),
        ({"key_memory": -1}, None, "key_memory must be an integer of at least 0, got -1"),
        ({"seed": -1}, None, "seed must be an integer of at least 0, got -1"),
        ({"temperature": 0}, None, "temperature must be above 0, got 0"),
        ({"max_grad_norm": 0.0}, None, "max_grad_norm must be above 0, got 0.0"),
        ({"hinge_scale": 0.5}, None, "hinge_scale must be a number of at least 1, got 0.5"),
        ({"mixed_precision": False}, None, "mixed_precision must be one of no, fp16, bf16 .in quotes, .* got False"),
        ({"base_dtype": "int8"}, None, "base_dtype must be one of auto, float32, float16, bfloat16 or null, got"),
        ({"train_file": 5}, None, r"train_file must be a non-empty text or a list \(in quotes, .*\), got 5"),
        ({"train_file": None}, None, "train_file must be a non-empty text or a list, got None"),
        ({"train_file": []}, None, r"train_file must be a path or at least one source, got \[\]"),
        (
            {"train_file": {"file": "x.json"}},
            None,
            "train_file: A data source must be a path, .*, got {'file': 'x.json'}",
        ),
        (
            {"train_file": [{"path": None}]},
            None,
            "train_file: path of a data source must be a non-empty text, got None",
        ),
        ({"train_file": [[5, 1]]}, None, "train_file: path of a data source must be a non-empty text, got 5"),
        ({"train_file": [{"path": "a", "layout": ["facts"]}]}, None, r"train_file: layout must be .* got \['facts'\]"),
        ({"train_file": [{"path": "a", "half": "test"}]}, None, "train_file: half must be 'train' or 'held_out', got"),
        ({"output_dir": 5}, None, "output_dir must be a non-empty text .*, got 5"),
        ({"output_dir": " "}, None, "output_dir must be a non-empty text, got ' '"),
        ({"base_model": None}, None, "base_model must be a non-empty text, got None"),
        ({"encoder": 5}, None, "encoder must be a non-empty text .*, got 5"),
        ({"hub_model_id": 5}, None, "hub_model_id must be a non-empty text or null .*, got 5"),
        ({"push_to_hub": "false", "hub_model_id": "a/b"}, None, "push_to_hub must be true or false, got 'false'"),
        ({"hub_private_repo": "no"}, None, "hub_private_repo must be true or false, got 'no'"),
        ({"pack_rows": 1}, None, "pack_rows must be true or false, got 1"),
        ({"temperature": float("inf")}, None, "temperature must be a finite number, got inf"),
        ({"max_grad_norm": 10**400}, None, "max_grad_norm must be a finite number, got 1000"),
        ({"temperature": True}, None, "temperature must be a finite number, got True"),
        ({"knowledge_dim": -4}, None, "knowledge_dim must be a positive multiple of 8, got -4"),
        ({"knowledge_dim": 100}, None, "knowledge_dim must be a positive multiple of 8, got 100"),
        ({"num_sentinel_tokens": 0}, None, "num_sentinel_tokens must be an integer of at least 1, got 0"),
        ({"stages": []}, None, "stages must be at least one"),
        ({"stages": {"joint": STAGE}}, None, "must be a mapping with a list of stages"),
        ({"stages": ["joint"]}, None, "stages must be a mapping, got 'joint'"),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, run: Any, stage: Any, message: str):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, run, stage)


def test_missing_keys_are_named(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"stages": [STAGE], "base_model": "b"}))
    with pytest.raises(ValueError, match=r"run\.yaml: missing keys train_file, output_dir"):
        TrainingConfig.from_yaml(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN | {"stages": [{"name": "joint"}]}))
    with pytest.raises(ValueError, match="stages: missing keys steps"):
        TrainingConfig.from_yaml(tmp_path / "run.yaml")


def test_number_that_yaml_takes_for_text_is_explained(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN).replace("steps: 5", "steps: 5\n  learning_rate: 1e-5"))
    with pytest.raises(ValueError, match="learning_rate of stage 'joint' .* write 1.0e-5.*got '1e-5'"):
        TrainingConfig.from_yaml(tmp_path / "run.yaml")


def test_a_single_source_is_a_list_of_one(tmp_path: Path):
    source = {"path": "cf.json", "half": "train"}
    assert read(tmp_path, {"train_file": source}).train_file == [source]


def test_what_was_never_a_file_is_refused_too():
    with pytest.raises(ValueError, match="stages must be a tuple of StageConfig, got 'joint'"):
        TrainingConfig("b", "t", "o", "joint")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: a\nbase_model: b\n", r"key 'base_model' must be given once, got it twice.*line 2"),
        ("stages:\n- {steps: 1, steps: 2}\n", r"key 'steps' must be given once.*line 2"),
        ("[" * 100_000, "is not valid YAML"),
        (f"seed: {'9' * 5000}", "is not valid YAML: Exceeds the limit"),
        ("base_model: \udcff", "is not valid YAML: .*can't decode byte 0xff"),
    ],
    ids=["twice", "twice, deeper", "deep", "long", "bytes"],
)
def test_yaml_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "run.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"(?s)run\.yaml.*{message}"):
        TrainingConfig.from_yaml(tmp_path / "run.yaml")


def test_broken_yaml_and_missing_file(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("stages: [")
    with pytest.raises(ValueError, match=r"run\.yaml is not valid YAML"):
        TrainingConfig.from_yaml(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError):
        TrainingConfig.from_yaml(tmp_path / "none.yaml")


def test_every_field_is_documented():
    for kind in (StageConfig, TrainingConfig):
        for field in dataclasses.fields(kind):
            assert f"        {field.name}: " in kind.__doc__
