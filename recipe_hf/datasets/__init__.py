"""Knowledge editing data sets, as lists of [`EditExample`]."""

from .example import EditExample, split_half
from .layouts import LAYOUTS
from .loading import DataSource, load_examples, load_mixture, named_on_hub

__all__ = ["LAYOUTS", "DataSource", "EditExample", "load_examples", "load_mixture", "named_on_hub", "split_half"]
