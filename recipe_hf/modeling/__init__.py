"""The RECIPE model and its parts."""
