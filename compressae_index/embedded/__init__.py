"""An index's documents in this process: packed codes and posting lists, searched by the engine."""

from __future__ import annotations
