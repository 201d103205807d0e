"""Knowledge editing data sets, as lists of [`EditExample`]."""

from .example import EditExample, split_half
from .layouts import LAYOUTS, Row
from .loading import DataSource, load_examples, load_mixture, named_on_hub, read_rows

__all__ = [
    "LAYOUTS",
    "DataSource",
    "EditExample",
    "Row",
    "load_examples",
    "load_mixture",
    "named_on_hub",
    "read_rows",
    "split_half",
]
