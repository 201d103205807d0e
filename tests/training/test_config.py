from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import recipe_hf.training
from recipe_hf.datasets import DataSource
from recipe_hf.training import config as module
from recipe_hf.training.config import StageConfig, TrainingConfig
from recipe_hf.training.yaml_config import YamlConfig, field_names
from tests.tiny_training import grouped

DIRECTORY = Path(recipe_hf.training.__file__).parent / "configs"
# The verifier's are of another trainer (tests/training/verification/test_config.py).
CONFIGS = sorted(path for path in DIRECTORY.glob("*.yaml") if not path.stem.startswith("verifier"))
STAGE = {"name": "joint", "steps": 5, "contrastive_batch_size": 8, "editing_batch_size": 4}
FIELDS = {"base_model": "base", "train_file": "cf.json", "output_dir": "out", "stages": [STAGE]}
RUN = grouped(**FIELDS)


def read(tmp_path: Path, changes: dict[str, Any] | None = None) -> TrainingConfig:
    """Reads `RUN` with changes."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    return TrainingConfig.from_yaml(tmp_path / "run.yaml", changes)


def test_there_are_shipped_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_loads(path: Path):
    names_base = "base_model" in yaml.safe_load(path.read_text())["model"]
    config = TrainingConfig.from_yaml(path, {} if names_base else {"model.base_model": "base"})
    assert config.num_steps == sum(stage["steps"] for stage in yaml.safe_load(path.read_text())["stages"])
    sources = [config.data.train_file] if isinstance(config.data.train_file, str) else config.data.train_file
    paths = [config.model.base_model, *(DataSource.parse(source).path for source in sources)]
    assert not any(Path(part).is_absolute() for part in paths)


def test_values_reach_their_fields(tmp_path: Path):
    stage = STAGE | {"loss_weights": {"locality": 0.5}, "encoder_layers": 2}
    config = read(tmp_path, {"run.seed": 7, "objective.hinge_scale": 2, "stages": [stage]})
    assert (config.run.seed, config.objective.hinge_scale) == (7, 2)
    assert (config.model.base_model, config.model.knowledge_dim) == ("base", 1024)
    assert config.stages == [StageConfig(**stage)]
    assert (config.stages[0].weight("locality"), config.stages[0].weight("reliability")) == (0.5, 1.0)
    assert (config.stages[0].batch_size, config.num_steps) == (8, 5)


def test_keys_sentinel_and_prompts_follow_the_learning_rate_unless_they_have_their_own(tmp_path: Path):
    stage = read(tmp_path, {"stages.0.learning_rate": 0.5, "stages.0.prompt_learning_rate": 0.0}).stages[0]
    assert (stage.key_learning_rate, stage.sentinel_learning_rate, stage.prompt_learning_rate) == (0.5, 0.5, 0.0)


def test_defaults_are_the_papers(tmp_path: Path):
    config = read(tmp_path)
    assert config.stages[0].learning_rate == 1e-5
    assert (config.objective.temperature, config.objective.hinge_scale) == (1.0, None)
    assert (config.model.num_continuous_prompt_tokens, config.model.num_sentinel_tokens) == (3, 10)
    assert set(config.data.sampling.model_dump().values()) == {0.0}


def test_every_field_can_be_changed_by_its_name(tmp_path: Path):
    config = read(tmp_path, {"stages": [STAGE, STAGE | {"loss_weights": {"locality": 0.5}}]})
    for name in field_names(TrainingConfig):
        place: Any = config
        for part in name.replace("N", "0").split("."):
            place = place[int(part)] if part.isdigit() else getattr(place, part)
        assert config.changed({name.replace("N", "0"): place}) == config, name
    changes = {"run.seed": 3, "data.sampling.chat_share": 0.25, "stages.1.steps": 9}
    changed = config.changed(changes | {"stages.1.loss_weights.locality": 0, "stages.0.loss_weights.read_out": 2})
    assert (changed.run.seed, changed.data.sampling.chat_share, changed.stages[1].steps) == (3, 0.25, 9)
    assert [stage.loss_weights for stage in changed.stages] == [{"read_out": 2}, {"locality": 0}]
    assert changed.changed({"run.seed": 0}).data == changed.data and config.run.seed == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 1.0},
            "unknown field learning_rate: fields are grouped now, and this one is stages.N.learning_rate.",
        ),
        ({"seed": 1}, "unknown field seed: fields are grouped now, and this one is run.seed."),
        (
            {"data.sampling.chat_shar": 1.0},
            "unknown field data.sampling.chat_shar; the nearest is data.sampling.chat_",
        ),
        ({"data.chat_share": 1.0}, "unknown field data.chat_share; the nearest is data.sampling.chat_share."),
        ({"stages.0.step": 1}, "unknown field stages.0.step; the nearest is stages.0.steps."),
        ({"stages.1.steps": 1}, "stages.1.steps must be of a group, or of a member of a list, that the file has."),
        ({"stages.first.steps": 1}, "unknown field stages.first.steps; the nearest is stages.N.steps."),
        ({"run.seed.low": 1}, "run.seed must be a valid integer, got {'low': 1}."),
        ({"": 1}, "unknown field ; the nearest is "),
        ({"run": {5: 1}}, "unknown field run.5; the nearest is run."),
        ({"stages.0.steps": -1}, "stages.0.steps must be greater than or equal to 0, got -1."),
        ({"stages.0.steps": "5"}, "stages.0.steps must be a valid integer, got '5'."),
        ({"stages.0.steps": 0}, "steps of all stages together must be at least 1, got 0."),
        ({"stages.0.warmup_steps": 2.5}, "stages.0.warmup_steps must be a valid integer, got 2.5."),
        (
            {"stages.0.contrastive_batch_size": 0, "stages.0.editing_batch_size": 0},
            "stages.0.contrastive_batch_size or editing_batch_size must be above 0, got 0.",
        ),
        (
            {"stages.0.editing_batch_size": 9},
            "stages.0.editing_batch_size must be at most contrastive_batch_size, 8, got 9.",
        ),
        (
            {"stages.0.prompts": "both"},
            "stages.0.prompts must be 'statement', 'answer' or 'known_answer', got 'both'.",
        ),
        (
            {"stages.0.prompts": "known_answer"},
            "stages.0.contrastive_batch_size must be 0 with prompts: known_answer, got 8.",
        ),
        (
            {"stages.0.prompts": "known_answer", "stages.0.contrastive_batch_size": 0},
            "model.num_answer_prompt_tokens must be above 0 for stage 'joint', got 0.",
        ),
        (
            {"data.sampling.rewording_share": 2},
            "data.sampling.rewording_share must be less than or equal to 1, got 2.",
        ),
        ({"data.sampling.subject_share": -0.5}, "data.sampling.subject_share must be greater than or equal to 0, got"),
        ({"data.sampling.subject_share": None}, "data.sampling.subject_share must be a valid number, got None."),
        (
            {"data.sampling.hard_negative_share": 0.6},
            "data.sampling.hard_negative_share must be less than or equal to 0.5",
        ),
        (
            {"data.sampling": {"other_property_share": 0.75, "unrelated_text_share": 0.5}},
            "data.sampling.unrelated_text_share must be at most 0.25, what other_property_share leaves, got 0.5.",
        ),
        (
            {"data.sampling.unrelated_text_share": 0.5},
            "data.unrelated_texts_file must be a path with sampling.unrelated_text_share, got None.",
        ),
        (
            {"model.checkpoint": "c", "model.encoder_revision": "v1"},
            "model.encoder_revision must be null with a checkpoint or a retriever, got 'v1'.",
        ),
        (
            {"model.checkpoint": "c", "stages.0.prompts": "answer", "stages.0.contrastive_batch_size": 0},
            "stages.0.prompts must be another with a checkpoint, got 'answer'.",
        ),
        ({"stages.0.learning_rate": -0.1}, "stages.0.learning_rate must be greater than or equal to 0, got -0.1."),
        ({"stages.0.encoder_learning_rate": float("nan")}, "stages.0.encoder_learning_rate must be a finite number"),
        ({"stages.0.learning_rate": float("inf")}, "stages.0.learning_rate must be a finite number, got inf."),
        ({"stages.0.name": None}, "stages.0.name must be a valid string, got None."),
        ({"stages.0.loss_weights": {"local": 1.0}}, "stages.0.loss_weights.local must be 'reliability', "),
        (
            {"stages.0.loss_weights": ["locality"]},
            "stages.0.loss_weights must be a valid dictionary, got ['locality'].",
        ),
        ({"stages.0.loss_weights.locality": "x"}, "stages.0.loss_weights.locality must be a valid number, got 'x'."),
        ({"run.early_stopping_patience": 0}, "run.early_stopping_patience must be greater than 0, got 0."),
        ({"run.push_to_hub": True}, "run.hub_model_id must be a repository id such as"),
        ({"run.push_to_hub": "false"}, "run.push_to_hub must be a valid boolean, got 'false'."),
        ({"objective.pack_rows": 1}, "objective.pack_rows must be a valid boolean, got 1."),
        ({"objective.temperature": 0}, "objective.temperature must be greater than 0, got 0."),
        ({"objective.temperature": True}, "objective.temperature must be a valid number, got True."),
        ({"objective.hinge_scale": 0.5}, "objective.hinge_scale must be greater than or equal to 1, got 0.5."),
        ({"run.max_grad_norm": 10**400}, "run.max_grad_norm must be a valid number, got 1000"),
        ({"run.mixed_precision": False}, "run.mixed_precision must be 'no', 'fp16' or 'bf16', got False."),
        ({"run.language": 5}, "run.language must be a valid list or be a valid string, got 5."),
        ({"run.output_dir": " "}, "run.output_dir must have at least 1 character, got ' '."),
        ({"model.encoder": 5}, "model.encoder must be a valid string, got 5."),
        ({"model.knowledge_dim": -8}, "model.knowledge_dim must be greater than 0"),
        ({"model.knowledge_dim": 100}, "model.knowledge_dim must be a multiple of 8, got 100."),
        ({"data.train_file": 5}, "data.train_file must be a valid string or be a valid list, got 5."),
        ({"data.train_file": []}, "data.train_file must be a valid string or have at least 1 item after validation"),
        ({"data.train_file": {"file": "x.json"}}, "data.train_file: A data source must be a path, "),
        (
            {"data.train_file": [{"path": None}]},
            "data.train_file: path of a data source must be a non-empty text, got",
        ),
        (
            {"data.train_file": [{"path": "a", "half": "test"}]},
            "data.train_file: half must be 'train' or 'held_out', got",
        ),
        ({"stages": []}, "stages must have at least 1 item"),
        ({"stages": {"joint": STAGE}}, "stages must be a valid list, got {'joint'"),
        ({"stages": ["joint"]}, "stages.0 must be a valid dictionary or instance of StageConfig, got 'joint'."),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, changes: Any, message: str):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, changes)
    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}: {message}") and "\n" not in str(caught.value)


def test_flat_file_is_told_where_its_first_field_belongs(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(FIELDS, sort_keys=False))
    with pytest.raises(
        ValueError, match=r"unknown field base_model: fields are grouped now, .* is model\.base_model\.$"
    ):
        TrainingConfig.from_yaml(tmp_path / "run.yaml")


def test_missing_fields_are_named(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN | {"data": {}, "run": {}, "stages": [{"name": "joint"}]}))
    with pytest.raises(
        ValueError, match=r"run\.yaml: missing fields data\.train_file, stages\.0\.steps, run\.output_dir\.$"
    ):
        TrainingConfig.from_yaml(tmp_path / "run.yaml")


def test_a_number_without_a_point_is_one(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN).replace("steps: 5", "steps: 5\n  learning_rate: 1e-5"))
    assert TrainingConfig.from_yaml(tmp_path / "run.yaml").stages[0].learning_rate == 1e-5


def test_a_single_source_is_a_list_of_one(tmp_path: Path):
    source = {"path": "cf.json", "half": "train"}
    assert read(tmp_path, {"data.train_file": source}).data.train_file == [source]


def test_what_was_never_a_file_is_refused_too():
    with pytest.raises(ValidationError, match="Input should be a valid list"):
        TrainingConfig(**RUN | {"stages": "joint"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: a\nbase_model: b\n", r"key 'base_model' must be given once, got it twice.*line 2"),
        ("stages:\n- {steps: 1, steps: 2}\n", r"key 'steps' must be given once.*line 2"),
        ("[" * 100_000, "is not valid YAML"),
        (f"seed: {'9' * 5000}", "is not valid YAML: Exceeds the limit"),
        ("base_model: \udcff", "is not valid YAML: unacceptable character #x00ff"),
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
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, YamlConfig)]
    assert len(kinds) == 8
    for kind in kinds:
        for name in kind.model_fields:
            assert f"        {name}: " in str(kind.__doc__), name
