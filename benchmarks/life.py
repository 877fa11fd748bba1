"""A month in the life of an index: a shop whose catalogue changes, and turns to another kind of goods.

    python benchmarks/life.py
    python benchmarks/life.py --first wordnet.npy --second packages.npy --items 40000

Each day brings new items, changed ones and removals, more and more of them of the second kind, and a save
that is killed; drift is asked for, and the index recoded where it says so. Each day, its ids must be those of
the catalogue, and recall@10 and bytes are compared with an index that is built from that day's catalogue.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import markdown

from compressae_index import CompressedIndex
from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import normalize_rows
from compressae_index.demo import load_data
from compressae_index.sources import open_vectors
from compressae_index.training import TrainConfig

QUERIES = 100
SAVE = """
import sys
from compressae_index import CompressedIndex
CompressedIndex.load(sys.argv[1]).save(sys.argv[2])
"""


class Day(NamedTuple):
    """What a day ended with."""

    day: int
    items: int
    second: float
    """Share of items of the second kind."""
    drift: str
    """The verdict on what was added that day."""
    recoded: bool
    killed: str
    """What was there after the killed save: the index of "before", or of "today"."""
    recall: float
    fresh_recall: float
    """Of an index that was built from the catalogue of that day."""
    bytes: float
    """Resident bytes a vector, removed ones among them."""
    fresh_bytes: float


class Shop:
    """A catalogue, its index, and the vectors of both kinds that are still to come."""

    def __init__(
        self, first: FloatArray, second: FloatArray, items: int, config: TrainConfig, folder: Path
    ) -> None:
        self.kinds, self.taken = (first, second), [items, 0]
        self.config, self.folder, self.random = config, folder, random.Random(5)
        self.catalogue: dict[int, tuple[int, FloatArray]] = {
            number: (0, first[number]) for number in range(items)
        }
        self.index = self.built()
        self.index.save(folder / "shop")

    def built(self) -> CompressedIndex:
        """An index of the catalogue as it is."""
        return CompressedIndex.build(
            self.rows, self.ids, k=16, postings=8, originals="float16", config=self.config, progress=False
        )

    @property
    def ids(self) -> IdArray:
        """Ids of the catalogue."""
        return np.array(list(self.catalogue))

    @property
    def rows(self) -> FloatArray:
        """Their vectors."""
        return np.stack([vector for _, vector in self.catalogue.values()])

    def next(self, kind: int) -> tuple[int, FloatArray]:
        """An item that is new to the shop."""
        rows = self.kinds[kind]
        self.taken[kind] += 1
        return kind, rows[self.taken[kind] % len(rows)]

    def write(self, items: dict[int, tuple[int, FloatArray]]) -> None:
        """Adds or changes items."""
        self.index.upsert(np.stack([vector for _, vector in items.values()]), list(items))
        for number in items:
            self.catalogue.pop(number, None)  # what was replaced comes last
        self.catalogue |= items

    def day(self, number: int, days: int, share: float) -> Day:
        """Lives through a day on which a share of the catalogue changes."""
        count = max(int(share * len(self.catalogue)), 1)
        kinds = [int(self.random.random() < number / days) for _ in range(2 * count)]
        first = max(self.catalogue) + 1
        added = {first + place: self.next(kind) for place, kind in enumerate(kinds[:count])}
        self.write(added)
        changed = self.random.sample(sorted(self.catalogue.keys() - added.keys()), count)
        self.write({each: self.next(kind) for each, kind in zip(changed, kinds[count:], strict=True)})
        gone = self.random.sample(sorted(self.catalogue), count)
        self.index.remove(gone)
        for each in gone:
            del self.catalogue[each]
        today = np.stack([vector for _, vector in added.values()])
        verdict = self.index.drift(today).verdict
        if recoded := verdict == "recode":
            self.index.recode()
        elif number % 7 == 0:
            self.index.compact()
        killed = self.killed_save()
        return self.measured(number, verdict, killed, recoded=recoded)

    def killed_save(self) -> str:
        """Kills a save at a random time; what it leaves must be the index of before or of today."""
        before, shop = CompressedIndex.load(self.folder / "shop").ids, self.folder / "shop"
        self.index.save(self.folder / "today")
        command = [sys.executable, "-P", "-c", SAVE, str(self.folder / "today"), str(shop)]
        with subprocess.Popen(command) as child:
            time.sleep(self.random.uniform(0, 3))
            child.kill()
        left = CompressedIndex.load(shop).ids
        kinds = {"before": before, "today": self.index.ids}
        found = [name for name, ids in kinds.items() if np.array_equal(ids, left)]
        if not found:
            msg = "a killed save left neither the old index nor the new one"
            raise AssertionError(msg)
        self.index.save(shop)
        self.index = CompressedIndex.load(shop, mmap=self.random.random() < 0.5)
        return found[0]

    def measured(self, number: int, verdict: str, killed: str, *, recoded: bool) -> Day:
        """Compares the index with the catalogue, and with one that is built from it."""
        ids, rows = self.ids, self.rows
        if not np.array_equal(self.index.ids, ids):
            msg = f"on day {number}, the ids of the index are not those of the catalogue"
            raise AssertionError(msg)
        chosen = np.random.default_rng(number).permutation(len(ids))[:QUERIES]
        unit = normalize_rows(rows)
        truth = ids[np.argsort(-(unit[chosen] @ unit.T), axis=1)[:, :10]]
        fresh = self.built()
        recalls = [self.recall(index, rows[chosen], truth) for index in (self.index, fresh)]
        sizes = [index.stats().bytes_per_vector["total"] for index in (self.index, fresh)]
        second = float(np.mean([kind for kind, _ in self.catalogue.values()]))
        return Day(number, len(ids), second, verdict, recoded, killed, *recalls, *sizes)

    @staticmethod
    def recall(index: CompressedIndex, queries: FloatArray, truth: IdArray) -> float:
        """recall@10 of stored vectors, themselves among the ten."""
        found = index.search(queries, 10, refine=30, candidates=300, query_nnz=64).ids
        hits = (found[:, :, None] == truth[:, None, :]).any(axis=1).mean()
        return float(hits)


def shipped() -> tuple[FloatArray, FloatArray]:
    """Two kinds among the data of the package: either side of their first principal component."""
    rows = load_data().embeddings
    centred = rows - rows.mean(axis=0)
    side = centred @ np.linalg.svd(centred[:3000], full_matrices=False)[2][0]
    side *= -np.sign(np.median(side))
    return rows[side < np.percentile(side, 65)], rows[side > np.percentile(side, 80)]


def live(
    first: FloatArray, second: FloatArray, items: int, days: int, share: float, config: TrainConfig
) -> list[Day]:
    """The days of a shop, each checked."""
    folder = Path(tempfile.mkdtemp(prefix="life-"))
    try:
        shop = Shop(first, second, items, config, folder)
        return [shop.day(number, days, share) for number in range(1, days + 1)]
    finally:
        shutil.rmtree(folder)


@click.command()
@click.option(
    "--first", type=click.Path(exists=True), help="Vectors of the first kind.  [default: shipped ones]"
)
@click.option(
    "--second", type=click.Path(exists=True), help="Vectors of the second kind.  [default: shipped ones]"
)
@click.option("--items", default=8000, show_default=True, help="Items on the first day.")
@click.option("--days", default=30, show_default=True)
@click.option(
    "--share",
    default=0.05,
    show_default=True,
    help="Share of the catalogue that a day adds, changes, removes.",
)
@click.option("--n-latents", type=int, default=1024, show_default=True)
def main(first: str | None, second: str | None, items: int, days: int, share: float, n_latents: int) -> None:
    """Live through a month."""
    if first is None or second is None:
        kinds: Any = shipped()
    else:
        kinds = [open_vectors(each) for each in (first, second)]
        kinds = [np.asarray(each[0 : each.shape[0]], np.float32) for each in kinds]
    config = TrainConfig(k=16, n_latents=n_latents, steps=0, refine_rounds=16)
    lived = live(kinds[0], kinds[1], items, days, share, config)
    rows = [
        [*map(str, day[:2]), f"{day.second:.2f}", day.drift, "yes" if day.recoded else "", day.killed]
        + [f"{each:.3f}" for each in day[6:8]]
        + [f"{each:.1f}" for each in day[8:]]
        for day in lived
    ]
    heads = [
        "day",
        "items",
        "second kind",
        "drift",
        "recoded",
        "killed save",
        "recall@10",
        "fresh",
        "bytes",
        "fresh",
    ]
    click.echo(markdown(heads, rows))


if __name__ == "__main__":
    main()
