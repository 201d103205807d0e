# syntax=docker/dockerfile:1
# vLLM with facts: its own image, and recipe-hf as its plugin. Build from the checkout.
FROM vllm/vllm-openai:v0.32.0
COPY pyproject.toml README.md LICENSE /src/
COPY recipe_hf /src/recipe_hf
RUN pip install --no-cache-dir "/src[serve,qdrant]"
