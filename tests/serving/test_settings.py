from __future__ import annotations

from pathlib import Path

import pytest

from recipe_hf.serving import ServerSettings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text("checkpoint: of/file\nport: 1\nmax_batch_size: 4\nlog_level: warning\n")
    return path


def test_arguments_come_before_the_environment_and_that_before_the_file(file, monkeypatch):
    monkeypatch.setenv("RECIPE_HF_PORT", "2")
    monkeypatch.setenv("RECIPE_HF_LOG_LEVEL", "error")
    settings = ServerSettings.read(file, log_level="debug", knowledge=None)
    assert (settings.checkpoint, settings.max_batch_size) == ("of/file", 4)
    assert (settings.port, settings.log_level, settings.knowledge) == (2, "debug", None)
    assert type(settings) is ServerSettings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"port": 70000}, "port"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"host": " "}, "host must be an address"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_setting_is_named(given, told):
    with pytest.raises(ValueError, match=told):
        ServerSettings.read(**given)


def test_a_secret_is_never_told(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_HF_QDRANT_API_KEY", "s3cret")
    settings = ServerSettings.read()
    assert "s3cret" not in repr(settings) and settings.qdrant_api_key.get_secret_value() == "s3cret"
    file = tmp_path / "serve.yaml"
    file.write_text("qdrant_api_key: [s3cret]\n")
    monkeypatch.delenv("RECIPE_HF_QDRANT_API_KEY")
    with pytest.raises(ValueError, match="qdrant_api_key") as error:
        ServerSettings.read(file)
    assert "s3cret" not in str(error.value)


def test_a_missing_file_is_told():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        ServerSettings.read(Path("nowhere.yaml"))


def test_the_model_is_called_by_its_directory_or_as_told():
    assert ServerSettings(checkpoint="org/recipe-x").model_name == "recipe-x"
    assert ServerSettings(checkpoint="a/b", served_model_name="c").model_name == "c"
