"""The knowledge base: facts, kept in memory, in a file or in Qdrant, and search among their keys. Needs no model."""

from .contents import FACTS_FILE, KEYS_FILE
from .knowledge_base import KnowledgeBase, OnConflict
from .search.hits import Hits

__all__ = ["FACTS_FILE", "KEYS_FILE", "Hits", "KnowledgeBase", "OnConflict"]
