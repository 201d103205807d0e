"""The knowledge base: facts, kept in memory or in a store on disk, and search among their keys."""

from .base import KnowledgeBase, OnConflict
from .contents import FACTS_FILE, KEYS_FILE
from .search.hits import Hits

__all__ = ["FACTS_FILE", "KEYS_FILE", "Hits", "KnowledgeBase", "OnConflict"]
