from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from recipe_hf import RecipeForCausalLM
from recipe_hf.training.verification.trainer import VerifierTrainer, learning_rate_factor
from recipe_hf.training.verification.written import part_of
from tests.tiny_recipe import encoder_tokenizer, tiny_encoder
from tests.tiny_verifier import PEOPLE, pair_rows, tiny_config, write_parts, write_rows


class Interrupted(Exception):
    pass


class Interrupting(VerifierTrainer):
    stop_at = 5

    def _train_step(self) -> dict[str, torch.Tensor]:
        if self.step == self.stop_at:
            raise Interrupted
        return super()._train_step()


def read_log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def trained(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    assert VerifierTrainer(tiny_config(parts, directory)).train() == directory / "best"
    return directory


def test_steps_lower_the_loss(parts: Path, tmp_path: Path):
    VerifierTrainer(tiny_config(parts, tmp_path, steps=60, batch_size=16, eval_steps=100)).train()
    losses = [line["answers"] for line in read_log(tmp_path) if "answers" in line]
    assert len(losses) == 60 and sum(losses[-10:]) < 0.6 * sum(losses[:10])
    last = read_log(tmp_path)[-1]
    assert last["brier"] < last["brier_uncalibrated"]
    assert last["development"]["people"]["area_under_curve"] > 70


def test_prompts_that_name_their_retriever_get_no_verifier(parts: Path, tmp_path: Path):
    model = RecipeForCausalLM.from_pretrained(parts / "checkpoint", base_model=False)
    model.save_pretrained(tmp_path / "prompts", parts="prompts", retriever=parts / "checkpoint")
    config = tiny_config(parts, tmp_path / "run", checkpoint=str(tmp_path / "prompts"))
    with pytest.raises(ValueError, match="checkpoint must have a retriever of its own, got .*, which names"):
        VerifierTrainer(config)


def test_log_tells_of_losses_and_of_development_rows(trained: Path):
    log = read_log(trained)
    assert [line["step"] for line in log] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert {"loss", "answers", "pairs", "place"} < log[0].keys()
    development = log[3]["development"]
    assert set(development) == {"people", "edits", "songs"}
    assert set(development["people"]) == {"area_under_curve", "found", "affirmed"}
    assert set(development["songs"]) == {"affirmed"} and set(development["songs"]["affirmed"]) == {"chat"}


def test_resumed_run_ends_as_an_unbroken_one(parts: Path, trained: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path)
    with pytest.raises(Interrupted):
        Interrupting(config).train()
    assert not (tmp_path / "best").exists()
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")  # As if killed while copies changed places.
    VerifierTrainer(config).train(resume=True)
    assert not (tmp_path / "checkpoint.old").exists()
    weights, expected = (load_file(run / "best" / "verifier.safetensors") for run in (tmp_path, trained))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)

    def told(directory: Path) -> list[dict[str, Any]]:
        return [{**line, "seconds": 0} for line in read_log(directory)]

    assert told(tmp_path) == told(trained)


def test_best_is_the_checkpoint_with_a_verifier(parts: Path, trained: Path):
    best, checkpoint = trained / "best", parts / "checkpoint"
    assert sha256(best / "model.safetensors") == sha256(checkpoint / "model.safetensors")
    config, before = (json.loads((path / "config.json").read_text()) for path in (best, checkpoint))
    fields = {"num_verified_facts": 4, "verifier_margin": 1.0, "verifier_gap": None, "supersede_threshold": None}
    assert config == before | fields
    sums = json.loads((best / "checksums.json").read_text())
    assert sums["verifier.safetensors"] == sha256(best / "verifier.safetensors")
    model = RecipeForCausalLM.from_pretrained(best, base_model=False)
    assert [fact.statement for fact in model.knowledge] == ["Zork was written by Infocom."]
    assert not torch.equal(model.verifier.calibration, torch.tensor([0.0, 1.0, 0.0]))
    assert model.explain("Zork was written by").candidates[0].probability > 0
    record = json.loads((best / "verifier-training.json").read_text())
    assert record["config"]["steps"] == 6 and record["metrics"] == {
        name: value for name, value in read_log(best.parent)[-1].items() if name not in ("step", "seconds")
    }


def test_card_names_sources_and_figures_once(parts: Path, trained: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path, checkpoint=str(trained / "best"), steps=1)
    VerifierTrainer(config).train()
    for run, steps in ((trained, 6), (tmp_path, 1)):
        card = (run / "best" / "README.md").read_text()
        assert card.count("## Verifier\n") == 1 and f"trained for {steps} steps" in card
        assert "- pairs.jsonl, source `people` (share 0.7, MIT)\n" in card and str(parts) not in card
        assert card.index("## Verifier") < card.index("## Limits")
        assert card.startswith("---\nlibrary_name: recipe_hf") and "| songs |" in card


def test_starts_from_the_layers_of_an_encoder(parts: Path, tmp_path: Path):
    encoder = VerifierTrainer(tiny_config(parts, tmp_path, encoder=str(parts / "encoder"))).verifier.encoder
    weights = load_file(parts / "encoder" / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(encoder.state_dict()[name], weights[name])


def test_trains_a_verifier_on(parts: Path, trained: Path, tmp_path: Path):
    trainer = VerifierTrainer(tiny_config(parts, tmp_path, verifier=str(trained / "best"), steps=1))
    weights, expected = trainer.verifier.state_dict(), load_file(trained / "best" / "verifier.safetensors")
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in expected.items())
    assert trainer.inputs["start"] != VerifierTrainer(tiny_config(parts, tmp_path)).inputs["start"]
    trainer.train()
    with pytest.raises(ValueError, match="encoder must be null where a verifier is trained on, got 'enc'"):
        tiny_config(parts, tmp_path, verifier=str(trained / "best"), encoder="enc")


def test_encoder_of_another_shape_is_refused(parts: Path, tmp_path: Path):
    tiny_encoder().save_pretrained(tmp_path / "encoder")
    encoder_tokenizer().save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        ValueError, match=r"encoder must have layers like .* differs in 1 tensors, embeddings\.position"
    ):
        VerifierTrainer(tiny_config(parts, tmp_path / "run", encoder=str(tmp_path / "encoder")))


def test_another_run_is_not_resumed(parts: Path, trained: Path, tmp_path: Path):
    before = sha256(trained / "checkpoint" / "state.pt")
    with pytest.raises(ValueError, match=r"is of another run: steps was 6, now 7: set it back"):
        VerifierTrainer(tiny_config(parts, trained, steps=7)).train(resume=True)
    config = tiny_config(parts, trained)
    write_rows(tmp_path / "pairs.jsonl", pair_rows(PEOPLE[1:]))
    people = config.sources[0].changed({"path": str(tmp_path / "pairs.jsonl")})
    other = config.changed({"sources": [people, *config.sources[1:]]})
    with pytest.raises(ValueError, match=r"is of another run: statements of data was '36, .*now '35, "):
        VerifierTrainer(other).train(resume=True)
    with pytest.raises(FileExistsError, match="holds an earlier run: resume it"):
        VerifierTrainer(config).train()
    assert sha256(trained / "checkpoint" / "state.pt") == before


def test_damaged_checkpoint_is_named(parts: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path, steps=2)
    VerifierTrainer(config).train()
    with open(tmp_path / "checkpoint" / "state.pt", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        VerifierTrainer(config).train(resume=True)


def test_data_without_rows_for_a_part_are_refused(parts: Path, tmp_path: Path):
    rows = [row for row in pair_rows() if part_of(row["statement"]) != "development"]
    (source, *_) = tiny_config(parts, tmp_path).sources
    source = source.changed({"path": str(write_rows(tmp_path / "pairs.jsonl", rows)), "num_eval_rows": len(rows)})
    with pytest.raises(ValueError, match="sources must have statements with asks to train on, got none"):
        VerifierTrainer(tiny_config(parts, tmp_path, sources=[source]))
    source = source.changed({"num_eval_rows": None})
    with pytest.raises(ValueError, match="sources must have asks and misses for development, got none: num_eval_rows"):
        VerifierTrainer(tiny_config(parts, tmp_path, sources=[source]))


def test_learning_rate_rises_and_falls_along_a_line(parts: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path, steps=100, warmup_steps=10)
    assert learning_rate_factor(0, config) == pytest.approx(0.1)
    assert learning_rate_factor(50, config) == pytest.approx(0.5)
    assert learning_rate_factor(99, config) == pytest.approx(0.02)


def test_command_line_trains_what_the_configuration_says(parts: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path / "no", steps=1, checkpoint="nowhere")
    path = tmp_path / "verifier.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "recipe_hf.training.verify", "--config", str(path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "verify.py: pretrained_model_name_or_path must be a directory" in refused.stderr
    changes = ["--checkpoint", str(parts / "checkpoint"), "--output-dir", str(tmp_path / "run")]
    changes += ["--set", "steps=2", "--set", "sources.0.share=0.8"]
    done = subprocess.run([*command, *changes], capture_output=True, text=True)
    assert done.stdout == f"The checkpoint with its verifier is in {tmp_path / 'run' / 'best'}.\n"
    record = json.loads((tmp_path / "run" / "best" / "verifier-training.json").read_text())["config"]
    assert (record["steps"], record["sources"][0]["share"]) == (2, 0.8)
    assert not (tmp_path / "no").exists()
