"""What a vector becomes: codes, the model that makes them, and directories of codes."""

from __future__ import annotations
