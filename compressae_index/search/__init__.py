"""The index as such: queries, answers, the protocol of documents and the stages of a search."""

from __future__ import annotations
