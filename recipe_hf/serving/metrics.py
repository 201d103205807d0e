"""What Prometheus asks for: counts and times of requests, retrieval and generation."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server, each with its name in Prometheus."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("recipe_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "recipe_request_seconds", "From a request to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("recipe_prompt_tokens", "Tokens of prompts, facts apart.", registry=registry)
        self.answer_tokens = Counter("recipe_answer_tokens", "Tokens generated.", registry=registry)
        self.first_token_seconds = Histogram(
            "recipe_first_token_seconds", "From a prompt to the first of its answer.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.gate = Counter(
            "recipe_gate", "Queries looked up, and whether a fact fired.", ["fired"], registry=registry
        )
        self.retrieval_seconds = Histogram(
            "recipe_retrieval_seconds", "Looking up the queries of a batch.", buckets=_SECONDS, registry=registry
        )
        self.generation_seconds = Histogram(
            "recipe_generation_seconds", "Generating a batch.", buckets=_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "recipe_batch_size", "Rows of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self.waiting = Gauge("recipe_waiting", "Rows that wait to be generated.", registry=registry)
        self.facts = Gauge("recipe_facts", "Facts held, in all namespaces.", registry=registry)
