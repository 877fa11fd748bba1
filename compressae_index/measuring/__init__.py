"""Recall, bytes and milliseconds, and how they are shown."""

from __future__ import annotations
