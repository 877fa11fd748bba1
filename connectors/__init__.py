"""Other systems that hold or serve the codes."""

from __future__ import annotations
