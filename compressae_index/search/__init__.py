"""What an index is: queries, answers, the protocol of back ends and the stages of a search."""

from __future__ import annotations
