"""The files of deploy/, as far as they can be checked without building images."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from recipe_hf.serving import ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not in a source distribution")


@pytest.mark.parametrize("file", ["Dockerfile", "vllm.Dockerfile", "compose.yaml", "recipe-hf.service"])
def test_variables_are_those_of_settings(file: str):
    names = {name.lower() for name in re.findall(r"RECIPE_HF_([A-Z_]+)", (DEPLOY / file).read_text())}
    assert names <= ServerSettings.model_fields.keys()


def test_the_example_of_settings_can_be_read():
    settings = ServerSettings.read(DEPLOY / "serve.yaml")
    assert settings.host == "127.0.0.1" and settings.keys


def test_compose_names_files_that_are_there_and_shows_nothing_to_other_machines():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert {"qdrant", "serve", "vllm"} <= compose["services"].keys()
    for service in compose["services"].values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]


@pytest.mark.parametrize("file", ["Dockerfile", "vllm.Dockerfile"])
def test_images_copy_what_is_there(file: str):
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / file).read_text(), flags=re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_takes_the_unit(tmp_path: Path):
    unit = (DEPLOY / "recipe-hf.service").read_text().replace("/opt/recipe-hf/bin/recipe-hf", "/bin/true")
    (tmp_path / "recipe-hf.service").write_text(unit)
    checked = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "recipe-hf.service"], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_documentation_names_every_setting():
    page = (ROOT / "docs" / "serving.md").read_text()
    section = page.partition("<!-- settings -->")[2].partition("<!-- end of settings -->")[0]
    rows = {name: told for name, told in re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", section, flags=re.MULTILINE)}
    assert rows == {name: field.description or "" for name, field in ServerSettings.model_fields.items()}
