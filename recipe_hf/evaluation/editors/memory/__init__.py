"""MLPs as memories of keys and values: what editors that write facts into a model's weights share."""
