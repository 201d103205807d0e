"""What `import recipe_hf` brings, and that transformers knows its checkpoints whatever is imported first."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

import recipe_hf
from tests.command import python
from tests.tiny_recipe import PROMPTS, base_tokenizer, edited_recipe, tiny_base


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that names its base, a directory."""
    directory = tmp_path_factory.mktemp("import")
    tiny_base().save_pretrained(directory / "base")
    base_tokenizer().save_pretrained(directory / "base")
    model = edited_recipe()
    model.config.base_model_name_or_path = str(directory / "base")
    model.save_pretrained(directory / "checkpoint")
    return directory / "checkpoint"


def test_importing_the_library_imports_neither_torch_nor_transformers():
    code = "import sys, recipe_hf; print({'torch', 'transformers'} & set(sys.modules), recipe_hf.__version__)"
    assert python(code).stdout == f"set() {version('recipe-hf')}\n"


def test_names_are_those_of_the_modules_that_define_them():
    from recipe_hf.knowledge import KnowledgeBase
    from recipe_hf.modeling.configuration import RecipeConfig
    from recipe_hf.modeling.model import RecipeForCausalLM
    from recipe_hf.modeling.outputs import Retrieval

    expected = {type_.__name__: type_ for type_ in (KnowledgeBase, RecipeConfig, RecipeForCausalLM, Retrieval)}
    assert {name: getattr(recipe_hf, name) for name in recipe_hf.__all__} == expected | {
        "__version__": version("recipe-hf")
    }
    assert set(recipe_hf.__all__) <= set(dir(recipe_hf))
    with pytest.raises(AttributeError, match="module 'recipe_hf' has no attribute 'nothing'"):
        recipe_hf.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from recipe_hf import nothing  # noqa: F401


LOAD = "print(type(AutoModelForCausalLM.from_pretrained(checkpoint)).__module__)"
OF_TRANSFORMERS = "from transformers import AutoModelForCausalLM"


@pytest.mark.parametrize(
    "code",
    [
        f"import recipe_hf; {OF_TRANSFORMERS}; {LOAD}",
        f"{OF_TRANSFORMERS}; import recipe_hf; {LOAD}",
        f"from recipe_hf import KnowledgeBase; import transformers; {OF_TRANSFORMERS}; {LOAD}",
        f"import transformers; import recipe_hf.modeling.frozen_base; {OF_TRANSFORMERS}; {LOAD}",
        f"from transformers import AutoConfig; import recipe_hf; {OF_TRANSFORMERS}; "
        "config = AutoConfig.from_pretrained(checkpoint); "
        "print(type(AutoModelForCausalLM.from_config(config)).__module__)",
        "import recipe_hf; from transformers import pipeline; "
        f"said = pipeline('text-generation', checkpoint)({PROMPTS[0]!r}, max_new_tokens=2); "
        "print('recipe_hf.modeling.model' if said else said)",
    ],
)
def test_transformers_knows_checkpoints_whatever_is_imported_first(saved, code):
    result = python(f"checkpoint = {str(saved)!r}; {code}")
    assert result.stdout == "recipe_hf.modeling.model\n", result.stderr
