"""Recall, bytes and milliseconds: measured, and shown."""

from __future__ import annotations
