"""From vectors to codes: the model, the codes, and directories of codes."""

from __future__ import annotations
