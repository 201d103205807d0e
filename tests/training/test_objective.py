from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from recipe_hf.modeling.configuration import PROMPT_POSITIONS
from recipe_hf.training.config import LOSSES, SamplingConfig, StageConfig, TrainingConfig
from recipe_hf.training.losses import contrastive_losses
from recipe_hf.training.objective import RecipeObjective, parameter_groups
from recipe_hf.training.sampling import FactSampler
from tests.tiny import FURTHER_ARCHITECTURES
from tests.tiny_recipe import base_tokenizer, bos_tokenizer, tiny_base, untrained_recipe
from tests.tiny_training import EXAMPLES, grouped

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SAMPLER = FactSampler(EXAMPLES, SamplingConfig(answer_resampling=0.5, subject_share=0.3), seed=0)
FACTS = SAMPLER.draw(0, 4)
WARM = StageConfig(name="warm", steps=1, prompts="answer", editing_batch_size=2)
HEADS = StageConfig(name="heads", steps=1, contrastive_batch_size=4)
ENCODER = StageConfig(name="encoder", steps=1, contrastive_batch_size=4, encoder_learning_rate=1e-3)
CONTRASTIVE = ["neighbor_reliability", "neighbor_generality", "sentinel_locality", "sentinel_edit"]
JOINT = StageConfig(name="joint", steps=1, contrastive_batch_size=4, editing_batch_size=2)
KNOWN = StageConfig(name="known answers", steps=1, prompts="known_answer", editing_batch_size=3)


def config_of(stage: StageConfig, **fields: Any) -> TrainingConfig:
    values = {"base_model": "b", "train_file": "t", "output_dir": "o", "stages": [stage]}
    return TrainingConfig(**grouped(**values | fields))


def make(stage: StageConfig, **changes: Any) -> RecipeObjective:
    """An objective at the beginning of a stage."""
    values = {"knowledge_dim": 64, "num_sentinel_tokens": 4, "temperature": 0.5} | changes
    model = untrained_recipe(**{k: v for k, v in values.items() if k == "num_answer_prompt_tokens"})
    objective = RecipeObjective(model, config_of(stage, **values), SAMPLER)
    if values.get("checkpoint") is None:
        objective.fit_standardizer(FACTS)
    objective.start_stage(stage, None)
    return objective


def trained_parts(objective: RecipeObjective) -> set[str]:
    return {name for name, parameter in objective.named_parameters() if parameter.requires_grad}


def answer_scores(
    objective: RecipeObjective, prompt: str, answer: str, prefix: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits at the answer of a row alone, without padding, and the answer's ids."""
    lm, tokenizer = objective.model.lm, objective.model.tokenizer
    prompt_ids = tokenizer(prompt)["input_ids"]
    answer_ids = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
    embeds = lm.get_input_embeddings()(torch.tensor(prompt_ids + answer_ids))
    behind = int(objective.model.config.prompt_position == "after_bos")
    embeds = embeds if prefix is None else torch.cat([embeds[:behind], prefix, embeds[behind:]])
    logits = lm(inputs_embeds=embeds.unsqueeze(0), use_cache=False).logits[0]
    return logits[-len(answer_ids) - 1 : -1], torch.tensor(answer_ids)


def test_a_model_whose_facts_are_told_as_text_is_refused():
    with pytest.raises(ValueError, match="prompt_form must be 'continuous' in a model to train, got 'text'"):
        RecipeObjective(untrained_recipe(prompt_form="text"), config_of(JOINT), SAMPLER)


# ---------------------------------------------------------------------- what the losses are


@pytest.mark.parametrize("pack_rows", [False, True])
@pytest.mark.parametrize("prompt_position", PROMPT_POSITIONS)
@torch.no_grad()
def test_editing_losses_equal_those_of_each_row_alone(prompt_position: str, pack_rows: bool):
    objective = make(JOINT, pack_rows=pack_rows)
    objective.model.tokenizer = objective.tokenizer = bos_tokenizer()
    objective.model.config.prompt_position = prompt_position
    losses = objective(FACTS, JOINT, 0)
    assert set(losses) == set(LOSSES)
    keys = objective.retriever.encode_statements([f"{f.example.prompt} {f.answer}" for f in FACTS[:2]])
    reliability, generality, locality = 0.0, 0.0, 0.0
    for fact, prefix in zip(FACTS, objective.prompt_encoder(keys), strict=False):
        example = fact.example
        reliability += cross_entropy(*answer_scores(objective, example.prompt, fact.answer, prefix)) / 2
        generality += cross_entropy(*answer_scores(objective, example.rephrase_prompt, fact.answer, prefix)) / 2
        question = example.locality_prompt, example.locality_answer
        p = answer_scores(objective, *question, None)[0].softmax(-1)
        q = answer_scores(objective, *question, prefix)[0].softmax(-1)
        locality += (p * (p.log() - q.log())).sum(-1).mean() / 2
    torch.testing.assert_close(losses["reliability"], reliability, **CLOSE)
    torch.testing.assert_close(losses["generality"], generality, **CLOSE)
    torch.testing.assert_close(losses["locality"], locality, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_base_is_asked_in_its_chat_template_and_the_retriever_is_not():
    objective, tokenizer = make(JOINT), base_tokenizer()
    facts = [replace(fact, in_chat=True) for fact in FACTS]
    losses, plain = objective(facts, JOINT, 0), objective(FACTS, JOINT, 0)
    keys = objective.retriever.encode_statements([f"{f.example.prompt} {f.answer}" for f in FACTS[:2]])
    reliability = 0.0
    for fact, prefix in zip(FACTS, objective.prompt_encoder(keys), strict=False):
        turns = [{"role": "user", "content": fact.example.prompt}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        answer = tokenizer(fact.answer, add_special_tokens=False)["input_ids"]
        embeds = objective.model.lm.get_input_embeddings()(torch.tensor(asked + answer))
        logits = objective.model.lm(inputs_embeds=torch.cat([prefix, embeds]).unsqueeze(0)).logits[0]
        reliability += cross_entropy(logits[-len(answer) - 1 : -1], torch.tensor(answer)) / 2
    torch.testing.assert_close(losses["reliability"], reliability, **CLOSE)
    assert all(torch.equal(losses[name], plain[name]) for name in CONTRASTIVE)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"chat_share must be 0 for a base without a chat template, got 0\.5"),
        ("{{ 'Be brief.' }}", "chat_template must have a turn for a user's message, got one that leaves it out"),
    ],
)
def test_a_share_of_chats_needs_a_chat_template_with_a_user_turn(template: str | None, message: str):
    model = untrained_recipe()
    model.tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        RecipeObjective(model, config_of(JOINT, knowledge_dim=64, chat_share=0.5), SAMPLER)


@torch.no_grad()
def test_continuation_loss_compares_what_follows_the_answer_with_the_base():
    objective = make(JOINT)
    lm, tokenizer = objective.model.lm, objective.model.tokenizer
    expected = 0.0
    keys = objective.retriever.encode_statements([f"{f.example.prompt} {f.answer}" for f in FACTS[:2]])
    for fact, prefix in zip(FACTS, objective.prompt_encoder(keys), strict=False):
        answer = tokenizer(f" {fact.answer}", add_special_tokens=False)["input_ids"]
        following = tokenizer(f". {fact.example.locality_prompt}", add_special_tokens=False)["input_ids"][:2]
        for question in (fact.example.prompt, fact.example.rephrase_prompt):
            embeds = lm.get_input_embeddings()(torch.tensor(tokenizer(question)["input_ids"] + answer + following))
            rows = [torch.cat([prefix, embeds]), embeds]
            q, p = (lm(inputs_embeds=row.unsqueeze(0)).logits[0, -len(following) - 1 : -1].softmax(-1) for row in rows)
            expected += (p * (p.log() - q.log())).sum(-1).mean() / 4
    torch.testing.assert_close(objective(FACTS, JOINT, 0)["continuation"], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stage", [WARM, JOINT, KNOWN], ids=lambda stage: stage.name)
def test_packed_rows_give_the_same_losses_and_gradients(stage: StageConfig):
    outcomes = []
    for packed in (False, True):
        objective = make(stage, pack_rows=packed, num_answer_prompt_tokens=4)
        losses = objective(FACTS, stage, 0)
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
        outcomes.append((losses, gradients))
    (losses, gradients), (packed_losses, packed_gradients) = outcomes
    torch.testing.assert_close(packed_losses, losses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed_gradients, gradients, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_rows_longer_than_a_sliding_window_are_not_packed():
    model = untrained_recipe(base=tiny_base("gemma3-sliding", sliding_window=48))
    facts = [replace(fact, in_chat=True) for fact in FACTS]
    losses = []
    for packed in (False, True):
        config = config_of(JOINT, knowledge_dim=64, num_sentinel_tokens=4, pack_rows=packed)
        losses.append(RecipeObjective(model, config, SAMPLER)(facts, JOINT, 0))
    torch.testing.assert_close(*losses, **CLOSE)


def test_a_base_that_cannot_be_packed_is_refused_at_once():
    model = untrained_recipe("qwen2-sliding")
    with pytest.raises(ValueError, match="pack_rows must be False for a base of type 'qwen2'"):
        RecipeObjective(model, config_of(JOINT, knowledge_dim=64, pack_rows=True), SAMPLER)


@torch.no_grad()
def test_contrastive_losses_are_over_statements_questions_and_past_keys():
    objective = make(HEADS, key_memory=6)
    first, second = SAMPLER.draw(1, 4), SAMPLER.draw(5, 4)
    shared = {fact.number for fact in first} & {fact.number for fact in second}
    assert len(shared) == 1, "the second step should meet a fact of the first again"
    objective(first, HEADS, 0)
    losses = objective(second, HEADS, 1)

    retriever = objective.retriever
    statements = [f"{fact.example.prompt} {fact.answer}" for fact in first + second]
    past, keys = retriever.encode_statements(statements).chunk(2)
    same = torch.tensor([[a.number == b.number for b in second + first] for a in second])
    expected = contrastive_losses(
        retriever.encode_queries([fact.example.prompt for fact in second]),
        retriever.encode_queries([fact.example.rephrase_prompt for fact in second]),
        retriever.encode_queries([fact.example.locality_prompt for fact in second]),
        keys,
        retriever.encode_sentinel(),
        past,
        same,
        torch.zeros_like(same),
        scale=1 / math.sqrt(64),
        temperature=0.5,
    )
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, **CLOSE)


@torch.no_grad()
def test_mined_negatives_are_the_facts_that_each_query_is_nearest_to():
    stage = ENCODER.changed({"mined_negatives": 1})
    objective = make(stage)
    objective.encode_all_facts()
    losses = objective(FACTS, stage, 0)
    retriever = objective.retriever
    everything = retriever.encode_statements([f"{e.prompt} {e.answer}" for e in EXAMPLES])
    keys = retriever.encode_statements([f"{fact.example.prompt} {fact.answer}" for fact in FACTS])
    asked = [getattr(f.example, name) for name in ("prompt", "rephrase_prompt", "locality_prompt") for f in FACTS]
    queries = retriever.encode_queries(asked)
    mined = []
    for place, scores in enumerate(queries @ everything.T):
        scores[FACTS[place % 4].number] = -torch.inf
        mined.append(int(scores.argmax()))
    candidates = torch.cat([retriever.encode_sentinel().unsqueeze(0), keys, everything[mined]])
    numbers = [-1, *(fact.number for fact in FACTS), *mined]
    for name, rows, target in (("neighbor_generality", range(4, 8), None), ("sentinel_locality", range(8, 12), 0)):
        expected = 0.0
        for place, row in enumerate(rows):
            logits = queries[row] @ candidates.T / 8 / 0.5
            twins = [i for i, n in enumerate(numbers) if n == FACTS[place].number and i != place + 1]
            if target is None:
                logits[twins] = -torch.inf
            expected += cross_entropy(logits, torch.tensor(place + 1 if target is None else target)) / 4
        torch.testing.assert_close(losses[name], expected, **CLOSE)


def test_a_run_on_a_checkpoint_reads_out_the_prompts_that_it_gave():
    objective = make(ENCODER, checkpoint="given")
    assert objective(FACTS, ENCODER, 0)["read_out"] < 1e-9
    with torch.no_grad():
        objective.prompt_encoder.output.bias.add_(0.5)
    loss = objective(FACTS, ENCODER, 0)["read_out"]
    statements = [f"{fact.example.prompt} {fact.answer}" for fact in FACTS]
    with torch.no_grad():
        targets = objective.prompt_encoder(objective.retriever.encode_statements(statements)) - 0.5
    torch.testing.assert_close(loss, 0.25 / (targets - targets.mean(0)).square().mean(), **CLOSE)
    loss.backward()
    assert all(p.grad is not None for p in objective.prompt_encoder.parameters())


@torch.no_grad()
def test_keys_of_an_encoder_in_training_are_not_remembered():
    objective = make(ENCODER, key_memory=6)
    objective(SAMPLER.draw(1, 4), ENCODER, 1)
    found, expected = objective(SAMPLER.draw(5, 4), ENCODER, 5), make(ENCODER)(SAMPLER.draw(5, 4), ENCODER, 5)
    for name in CONTRASTIVE:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


@torch.no_grad()
def test_distractors_stand_before_questions_but_not_in_statements_or_before_the_base():
    distractor = "The sun is hot. "
    facts = [replace(fact, distractor=distractor) for fact in FACTS]
    asked = [
        replace(
            fact,
            example=replace(
                fact.example,
                rephrasings=(distractor + fact.example.rephrase_prompt,),
                unrelated=((distractor + fact.example.locality_prompt, fact.example.locality_answer),),
            ),
        )
        for fact in FACTS
    ]
    found, expected, plain = (make(JOINT)(batch, JOINT, 0) for batch in (facts, asked, FACTS))
    for name in ("neighbor_generality", "sentinel_locality"):
        torch.testing.assert_close(found[name], expected[name], **CLOSE)
        assert abs(found[name] - plain[name]) > 1e-3
    for name in ("reliability", "generality", "locality", "read_out"):
        torch.testing.assert_close(found[name], plain[name], **CLOSE)


@torch.no_grad()
def test_facts_beyond_the_query_batch_are_candidates_and_read_out():
    stage = StageConfig(name="heads", steps=1, contrastive_batch_size=4, query_batch_size=2)
    objective = make(stage)
    losses = objective(FACTS, stage, 0)
    keys = objective.retriever.encode_statements([f"{fact.example.prompt} {fact.answer}" for fact in FACTS])
    queries = objective.retriever.encode_queries([fact.example.prompt for fact in FACTS[:2]])
    candidates = torch.cat([objective.retriever.encode_sentinel().unsqueeze(0), keys])
    expected = cross_entropy(queries @ candidates.T / 8 / 0.5, torch.tensor([1, 2]))
    torch.testing.assert_close(losses["neighbor_reliability"], expected, **CLOSE)
    torch.testing.assert_close(losses["read_out"], make(HEADS)(FACTS, HEADS, 0)["read_out"], **CLOSE)


@torch.no_grad()
def test_warm_start_prefixes_the_answers_own_embeddings():
    objective = make(WARM)
    losses = objective(FACTS, WARM, 0)
    assert set(losses) == {"reliability", "generality", "locality", "continuation"}
    expected = 0.0
    for fact in FACTS[:2]:
        ids = objective.model.tokenizer(" " + fact.answer, add_special_tokens=False)["input_ids"]
        embeds = objective.model.lm.get_input_embeddings()(torch.tensor(ids))
        prefix = torch.stack([embeds[0], embeds[1], embeds[2:].mean(0)])
        expected += cross_entropy(*answer_scores(objective, fact.example.prompt, fact.answer, prefix)) / 2
    torch.testing.assert_close(losses["reliability"], expected, **CLOSE)


def test_losses_of_no_weight_are_left_out_where_that_saves_work():
    stage = StageConfig(
        name="joint",
        steps=1,
        prompts="statement",
        contrastive_batch_size=4,
        editing_batch_size=2,
        loss_weights={"locality": 0.0, "read_out": 0.0},
    )
    assert set(LOSSES) - set(make(stage)(FACTS, stage, 0)) == {"locality", "read_out"}


def test_editing_losses_alone_need_no_contrastive_batch():
    stage = StageConfig(name="editing", steps=1, editing_batch_size=2)
    losses = make(stage)(FACTS[:2], stage, 0)
    both = make(JOINT)(FACTS, JOINT, 0)
    assert set(losses) == {"reliability", "generality", "locality", "continuation"}
    for name, value in losses.items():
        torch.testing.assert_close(value, both[name], **CLOSE)


def test_read_out_candidates_follow_from_the_step():
    objective = make(HEADS)
    first, again = (objective(FACTS, HEADS, 3)["read_out"] for _ in range(2))
    assert torch.equal(first, again)


def test_model_without_tokenizer_is_refused():
    model = untrained_recipe()
    model.tokenizer = None
    with pytest.raises(RuntimeError, match="has no tokenizer"):
        RecipeObjective(model, config_of(HEADS, knowledge_dim=64), SAMPLER)


# ---------------------------------------------------------------------- what is trained


def test_stages_train_their_parts():
    warm = trained_parts(make(WARM))
    assert warm == {"warm_start_prompt.offset", "warm_start_prompt.weight"}
    heads = trained_parts(make(HEADS))
    assert {name.split(".")[0] for name in heads} == {"retriever", "prompt_encoder"}
    assert "retriever.sentinel_embeds" in heads and not any("retriever.encoder." in name for name in heads)
    encoder = trained_parts(make(ENCODER)) - heads
    assert {
        name for name, _ in make(ENCODER).retriever.encoder.named_parameters(prefix="retriever.encoder")
    } == encoder


def test_last_layers_of_the_encoder_can_be_trained_alone():
    stage = StageConfig(name="top", steps=1, contrastive_batch_size=4, encoder_learning_rate=1e-3, encoder_layers=1)
    trained = trained_parts(make(stage)) - trained_parts(make(HEADS))
    assert trained and all(name.startswith("retriever.encoder.encoder.layer.1.") for name in trained)


@pytest.mark.parametrize("stage", [WARM, HEADS, ENCODER, JOINT], ids=lambda stage: stage.name)
def test_gradients_reach_what_is_trained_and_nothing_else(stage: StageConfig):
    objective = make(stage)
    sum(objective(FACTS, stage, 0).values()).backward()
    moved = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved <= trained_parts(objective)
    missing = trained_parts(objective) - moved
    # The pooler is not read, and a layer's key bias moves no attention weight.
    assert all("pooler" in name or "key.bias" in name or "position" in name for name in missing), missing
    assert all(parameter.grad is None for parameter in objective.model.lm.parameters())


@pytest.mark.parametrize("stage", [JOINT, KNOWN], ids=lambda stage: stage.name)
@pytest.mark.parametrize("architecture", FURTHER_ARCHITECTURES)
def test_a_step_through_any_base_trains_our_parts_alone(architecture: str, stage: StageConfig):
    # Where every layer has a window, two layers of it must reach from the answer to the prompt.
    window = {"sliding_window": 16} if architecture in ("mistral", "phi3") else {}
    model = untrained_recipe(base=tiny_base(architecture, **window), num_answer_prompt_tokens=4)
    config = config_of(stage, knowledge_dim=64, num_sentinel_tokens=4, num_answer_prompt_tokens=4)
    objective = RecipeObjective(model, config, SAMPLER)
    objective.fit_standardizer(FACTS)
    objective.start_stage(stage, None)
    base = {name: weights.clone() for name, weights in model.lm.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 1e-3)
    before = objective(FACTS, stage, 0)
    sum(before.values()).backward()
    trained = model.prompt_encoder if stage is JOINT else model.answer_prompt_encoder
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in trained.parameters())
    assert all(weights.grad is None for weights in model.lm.parameters())
    optimizer.step()
    after = objective(FACTS, stage, 0)
    assert all(loss.isfinite() for losses in (before, after) for loss in losses.values())
    assert all(after[name] != before[name] for name in ("reliability", "generality"))
    assert all(torch.equal(weights, base[name]) for name, weights in model.lm.state_dict().items())


@torch.no_grad()
def test_warm_start_hands_its_mean_prompt_over_once():
    objective = make(WARM)
    output = objective.prompt_encoder.output
    objective.warm_start_prompt.offset.normal_()
    weight = output.weight.clone()
    objective.start_stage(HEADS, WARM)
    pieces = torch.stack([pieces.mean(0) for pieces in objective.pool.pieces])
    torch.testing.assert_close(output.bias.view(3, -1), objective.warm_start_prompt(pieces.unsqueeze(0))[0], **CLOSE)
    torch.testing.assert_close(output.weight, 0.1 * weight)
    output.bias.zero_()
    objective.start_stage(JOINT, HEADS)
    assert not output.bias.any()
    torch.testing.assert_close(output.weight, 0.1 * weight)


def test_standardizer_is_fitted_to_all_texts_of_the_facts():
    objective = make(HEADS)
    texts = [text for f in FACTS for text in (f"{f.example.prompt} {f.answer}", f.example.prompt)]
    texts += [text for f in FACTS for text in (f.example.rephrase_prompt, f.example.locality_prompt)]
    features = objective.retriever.standardizer(objective.retriever.text_features(texts))
    torch.testing.assert_close(features.mean(0), torch.zeros(96), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(96), atol=1e-3, rtol=0)


def test_every_parameter_follows_one_rate():
    objective = make(JOINT)
    rates = {id(p): (group["rate"], group["factor"]) for group in parameter_groups(objective) for p in group["params"]}
    assert sum(len(group["params"]) for group in parameter_groups(objective)) == len(list(objective.parameters()))
    for name, parameter in objective.named_parameters():
        expected = {
            "encoder": ("encoder_learning_rate", 1.0),
            "mlp_k": ("key_learning_rate", 1.0),
            "mlp_q": ("learning_rate", 1.0),
            "sentinel_embeds": ("sentinel_learning_rate", 1.0),
            "residual": ("prompt_learning_rate", 1.0),
            "output": ("prompt_learning_rate", 1.0),
            "offset": ("prompt_learning_rate", 1.0),
            "weight": ("prompt_learning_rate", 0.1),
        }[name.split(".")[1]]
        assert rates[id(parameter)] == expected, name


def test_joint_training_learns_a_fixed_batch():
    stage = StageConfig(
        name="joint",
        steps=25,
        prompts="statement",
        contrastive_batch_size=4,
        editing_batch_size=2,
        learning_rate=2e-3,
        encoder_learning_rate=1e-4,
    )
    objective = make(stage, temperature=1.0)
    base = {name: weight.clone() for name, weight in objective.model.lm.state_dict().items()}
    groups = [
        {"params": group["params"], "lr": getattr(stage, group["rate"])} for group in parameter_groups(objective)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    history = []
    for _ in range(stage.steps):
        losses = objective(FACTS, stage, 0)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    first, last = history[0], history[-1]
    for names in (["reliability"], ["generality"], ["read_out"], CONTRASTIVE):
        assert sum(last[name] for name in names) < 0.8 * sum(first[name] for name in names), names
    assert all(torch.equal(weight, base[name]) for name, weight in objective.model.lm.state_dict().items())


# ---------------------------------------------------------------------- features


def test_no_feature_of_an_older_encoder_is_used():
    objective = make(HEADS)
    objective(FACTS, HEADS, 0)
    objective(FACTS, ENCODER, 1)
    with torch.no_grad():
        for parameter in objective.retriever.encoder.parameters():
            parameter.mul_(1.1)
        found = objective(FACTS, HEADS, 2)["neighbor_reliability"]
        objective.cache.clear()
        torch.testing.assert_close(found, objective(FACTS, HEADS, 2)["neighbor_reliability"], **CLOSE)
