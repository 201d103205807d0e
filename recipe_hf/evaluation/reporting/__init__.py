"""Reporting: tables, pages, plots and summaries of what was measured."""
