"""Training of the retriever, the prompt encoders and the verifier."""
