"""Model cards and dataset cards: the templates, and what fills them."""

from .facts_card import facts_card
from .model_card import EvaluationResult, TrainingRun, model_card, published_card, update_results, write_model_card

__all__ = [
    "EvaluationResult",
    "TrainingRun",
    "facts_card",
    "model_card",
    "published_card",
    "update_results",
    "write_model_card",
]
