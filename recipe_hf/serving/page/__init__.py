"""The page for the person who keeps the facts: plain HTML, CSS and modules, which talk to the routes beside them.

It asks no other host for anything, and its Content-Security-Policy does not let it.
"""

from __future__ import annotations

from .routes import router

__all__ = ["router"]
