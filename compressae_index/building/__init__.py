"""Knobs, budgets and models: what is chosen before an index is built."""

from __future__ import annotations
