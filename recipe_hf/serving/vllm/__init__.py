"""The plugin for vLLM: `vllm serve BASE` answers with the facts of a checkpoint that the environment names."""
