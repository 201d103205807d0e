"""The model card template and what fills it."""

from .model_card import EvaluationResult, TrainingRun, write_model_card

__all__ = ["EvaluationResult", "TrainingRun", "write_model_card"]
