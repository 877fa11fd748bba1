"""`AsyncMilvusIndex`, a `MilvusIndex` for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pymilvus import AsyncMilvusClient

from compressae_index.checks import check_choice
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.milvus.client import TIMEOUT, ConsistencyLevel, lite_path
from compressae_index.connectors.milvus.errors import secrets_of, translated
from compressae_index.connectors.milvus.index import Fields, MilvusIndex, MilvusResult
from compressae_index.connectors.milvus.scope import Scope
from compressae_index.errors import BackendError, InputError
from compressae_index.search.backend import QUERY_BLOCK
from compressae_index.search.queries import Settings
from compressae_index.search.stages import joined, terms_of
from compressae_index.sources import VectorSource
from compressae_index.terminal import shown

# Modes of an asynchronous search.
MODES = ("sparse", "two_stage")


class AsyncMilvusIndex:
    """A `MilvusIndex` whose calls do not block the event loop.

    Searches are asynchronous down to gRPC, so many can run at once; a third stage reads in threads. Adding
    and removing run in threads, as most of the time goes into encoding.
    """

    def __init__(self, index: MilvusIndex, client: AsyncMilvusClient) -> None:
        """Wraps an open index and an asynchronous client of the same Milvus; see `open`."""
        self.index = index
        self._client = client

    @classmethod
    async def open(
        cls,
        uri: str | os.PathLike[str],
        collection: str,
        *,
        token: str = "",
        db_name: str = "",
        model: CompresSAE | str | Path | None = None,
        originals: bool = True,
        consistency_level: ConsistencyLevel = "Strong",
        timeout: float = TIMEOUT,
    ) -> AsyncMilvusIndex:
        """Opens a compressed collection; arguments and errors as for `MilvusIndex.open`."""
        index = await asyncio.to_thread(
            partial(
                MilvusIndex.open,
                uri,
                collection,
                token=token,
                db_name=db_name,
                model=model,
                originals=originals,
                consistency_level=consistency_level,
                timeout=timeout,
            )
        )
        path = lite_path(uri)
        address = str(uri if path is None else path)
        secrets = secrets_of(address, token) if path is None else ()
        with translated(f"connecting to {shown(address) if path is None else address}", secrets=secrets):
            client = AsyncMilvusClient(address, token=token, db_name=db_name, timeout=timeout)
        return cls(index, client)

    async def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        filter: Any = None,  # noqa: A002
        output_fields: Sequence[str] | None = (),
        partitions: Sequence[str] | None = (),
        consistency_level: ConsistencyLevel | None = None,
        **settings: Any,
    ) -> MilvusResult:
        """The k nearest documents of each query, in mode "sparse" or "two_stage".

        Arguments, result and errors as for `MilvusIndex.search`.
        """
        scope = Scope(filter, partitions or (), consistency_level)
        try:
            return await self._search(queries, k, scope, output_fields, settings)
        except (BackendError, InputError) as error:
            if not await asyncio.to_thread(partial(self.index.follow, unless=error)):
                raise
        return await self._search(queries, k, scope, output_fields, settings)

    async def _search(
        self, queries: Any, k: int, scope: Scope, fields: Sequence[str] | None, settings: dict[str, Any]
    ) -> MilvusResult:
        """A search of the collection and its model as they are now."""
        index = self.index.now()
        backend = index.documents
        names = await asyncio.to_thread(index.checked_fields, fields)
        held = await asyncio.to_thread(index.checked_partitions, scope.partitions)
        scope = replace(scope, partitions=held)
        chosen = Settings(filter=scope, **settings)
        check_choice(chosen.mode, "mode", MODES)
        asked = await asyncio.to_thread(index.asked, queries, k, chosen)
        results = []
        for block in asked.blocks(QUERY_BLOCK):
            terms = await asyncio.to_thread(terms_of, block)
            request = await asyncio.to_thread(backend.search_request, terms, block.candidates, scope)
            with backend.collection.doing("searching", expression=request["filter"]):
                hits = await self._client.search(**request)
            got = backend.found(hits, block.candidates, terms)
            results.append(await asyncio.to_thread(backend.scored, block, terms, got))
        result = index.turned(joined(results, asked.k, are_strings=backend.are_strings))
        return await asyncio.to_thread(index.with_fields, result, names)

    async def add(
        self,
        embeddings: VectorSource,
        ids: Any,
        *,
        fields: Fields | None = None,
        partition: str = "",
    ) -> None:
        """Adds vectors; arguments and errors as for `MilvusIndex.add`."""
        await asyncio.to_thread(self.index.add, embeddings, ids, fields=fields, partition=partition)

    async def upsert(
        self,
        embeddings: VectorSource,
        ids: Any,
        *,
        fields: Fields | None = None,
        partition: str = "",
    ) -> None:
        """Adds or replaces vectors; arguments and errors as for `MilvusIndex.add`."""
        await asyncio.to_thread(self.index.upsert, embeddings, ids, fields=fields, partition=partition)

    async def remove(self, ids: Any) -> None:
        """Removes vectors; errors as for `MilvusIndex.remove`."""
        await asyncio.to_thread(self.index.remove, ids)

    async def close(self) -> None:
        """Closes both connections."""
        await self._client.close()
        self.index.close()
