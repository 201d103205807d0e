"""The program `recipe-hf serve`, up to where it listens; tests/serving/test_killed.py has it running."""

from __future__ import annotations

import socket

import pytest

from recipe_hf.serving import ServerSettings
from recipe_hf.serving.keys import Keys
from recipe_hf.serving.running import listening, open_knowledge
from tests.command import python


def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['fastapi'] = None; from recipe_hf.cli import app; app(prog_name='recipe-hf')"
    said = python(code, "serve", "somewhere")
    assert said.returncode == 2
    assert said.stderr.startswith("recipe-hf: `recipe-hf serve` needs more packages: pip install 'recipe-hf[serve]'")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_addresses_than_loopback_need_keys(tmp_path, host):
    with pytest.raises(ValueError, match="host must be"):
        listening(ServerSettings(host=host, port=0))
    with pytest.raises(ValueError, match="host must be"):
        listening(ServerSettings(host=host, port=0, keys=tmp_path / "keys.json"))


def test_with_keys_it_listens_everywhere(tmp_path):
    Keys(tmp_path / "keys.json").add("ask")
    listening(ServerSettings(host="0.0.0.0", port=0, keys=tmp_path / "keys.json")).close()


def test_an_address_that_is_taken_is_told_and_nobody_can_connect_before_it_is_served():
    listener = listening(ServerSettings(port=0))
    port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    listener.listen()
    with pytest.raises(OSError, match=f"host and port 127.0.0.1:{port} cannot be listened on"):
        listening(ServerSettings(port=port))
    listener.close()


def test_facts_are_a_file_or_those_of_the_checkpoint(tmp_path):
    assert open_knowledge(ServerSettings(), 8) is None
    path = tmp_path / "facts.db"
    with open_knowledge(ServerSettings(knowledge=str(path)), 8) as facts:
        assert len(facts) == 0 and facts.dim == 8
        with open_knowledge(ServerSettings(knowledge=str(path), read_only=True), 8) as reader:
            assert len(reader) == 0
        with pytest.raises(BlockingIOError):
            open_knowledge(ServerSettings(knowledge=str(path)), 8)
    with pytest.raises(FileNotFoundError):
        open_knowledge(ServerSettings(knowledge=str(tmp_path / "none.db"), read_only=True), 8)


def test_facts_in_qdrant_are_named_by_a_url():
    pytest.importorskip("qdrant_client")
    with pytest.raises(ConnectionError, match="127.0.0.1"):
        open_knowledge(ServerSettings(knowledge="http://127.0.0.1:1"), 8)
