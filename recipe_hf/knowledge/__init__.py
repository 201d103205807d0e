"""The knowledge base: facts, kept in memory or in a store on disk, and search among their keys."""

from .contents import FACTS_FILE, KEYS_FILE
from .knowledge_base import KnowledgeBase, OnConflict
from .search.hits import Hits

__all__ = ["FACTS_FILE", "KEYS_FILE", "Hits", "KnowledgeBase", "OnConflict"]
