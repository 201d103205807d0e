"""Storage in Qdrant, for a knowledge base that several machines share. Needs `recipe-hf[qdrant]`."""

try:
    import qdrant_client as _  # noqa: F401
except ImportError as error:
    raise ImportError("A knowledge base in Qdrant needs qdrant-client: pip install 'recipe-hf[qdrant]'.") from error

from .qdrant_knowledge_base import QdrantKnowledgeBase

__all__ = ["QdrantKnowledgeBase"]
