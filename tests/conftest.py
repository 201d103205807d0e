"""What all tests share: nothing that they load is asked of the network."""

import os

# Before any library reads them: without these, a machine that cannot reach the Hub waits for time-outs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
