"""Attention over shared stretches and rows of one's own equals attention over all of it, one request at a time."""

from __future__ import annotations

import gc
import weakref
from random import Random

import pytest
import torch

from x2l_cluster.models.attend import Attention
from x2l_cluster.models.pages import Page
from x2l_cluster.models.partial import merged, partial, written_out
from x2l_cluster.models.rows import LONGEST, Shelves
from x2l_cluster.models.view import View

LAYERS, KV_HEADS, SHARING, DIM = 2, 2, 3, 8
HEADS = KV_HEADS * SHARING
SCALE = 0.4
F32 = torch.float32


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def page(entries: int, *, biased: bool = False) -> Page:
    keys, values = torch.randn(2, LAYERS, KV_HEADS, entries, DIM)
    return Page(keys=keys, values=values, bias=torch.randn(entries) if biased else None)


class Plain:
    """What a view is, the long way: everything it sees in one list, one request at a time."""

    def __init__(self, pages: list[Page]) -> None:
        self.keys, self.values = (torch.cat([getattr(p, name) for p in pages], 2) for name in ("keys", "values"))
        self.bias = torch.cat([torch.zeros(p.entries) if p.bias is None else p.bias for p in pages])

    def attend(self, queries, keys, values):
        """(layers, tokens, heads, dim) and (layers, tokens, kv_heads, dim), which it keeps."""
        new = queries.shape[1]
        self.keys, self.values = (
            torch.cat((old, fresh.transpose(1, 2)), 2) for old, fresh in ((self.keys, keys), (self.values, values))
        )
        mask = torch.cat((self.bias.expand(new, -1), torch.full((new, new), float("-inf")).triu(1)), 1)
        self.bias = torch.cat((self.bias, torch.zeros(new)))
        scores = queries.transpose(1, 2) @ self.keys.repeat_interleave(SHARING, 1).transpose(-1, -2) * SCALE + mask
        return (scores.softmax(-1) @ self.values.repeat_interleave(SHARING, 1)).transpose(1, 2).flatten(2)


def check(views: list[View], plain: list[Plain], sizes: list[int]) -> None:
    """One forward of them together; each sees what it sees alone."""
    tokens = sum(sizes)
    queries = torch.randn(LAYERS, tokens, HEADS, DIM)
    keys, values = torch.randn(2, LAYERS, tokens, KV_HEADS, DIM)
    attend = Attention(views, sizes, sharing=SHARING, dtype=F32)
    seen = torch.stack([attend(n, queries[n], keys[n], values[n], SCALE) for n in range(LAYERS)])
    start = 0
    for view, alone, size in zip(views, plain, sizes, strict=True):
        here = slice(start, start + size)
        expected = alone.attend(queries[:, here], keys[:, here], values[:, here])
        torch.testing.assert_close(seen[:, here], expected, atol=2e-5, rtol=1e-4)
        view.advance(size)
        start += size


def question(pages: list[Page], fine: dict[int, Page]) -> tuple[View, Plain]:
    return View(pages, fine), Plain([fine.get(place, page) for place, page in enumerate(pages)])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_whoever_joins_and_leaves_a_batch_sees_what_it_sees_alone(seed, biased):
    torch.manual_seed(seed)
    random = Random(seed)
    prefix = page(3)
    videos = [[prefix, *(page(random.randrange(1, 9), biased=biased) for _ in range(5))] for _ in range(3)]
    shelves, batch = Shelves(), []
    for _ in range(14):
        for _ in range(random.randrange(3)):
            pages = random.choice(videos)
            fine = {
                n: page(random.randrange(1, 90), biased=biased) for n in random.sample(range(1, 6), random.randrange(4))
            }
            view, plain = question(pages, fine)
            view.join(shelves)
            batch.append((view, plain, random.randrange(1, 30)))
        if batch and random.random() < 0.4:
            batch.pop(random.randrange(len(batch)))[0].leave()
        random.shuffle(batch)
        if batch:
            check([view for view, _, _ in batch], [plain for _, plain, _ in batch], [size for _, _, size in batch])
        batch = [(view, plain, 1) for view, plain, _ in batch]


def test_a_view_that_nobody_has_any_more_is_gone_with_all_it_kept():
    pages, shelves = [page(4), page(6)], Shelves()
    gc.disable()
    try:
        alone, (joined, plain), (stays, stays_plain) = View(pages), question(pages, {}), question(pages, {})
        joined.join(shelves)
        stays.join(shelves)
        check([alone, joined, stays], [Plain(pages), plain, stays_plain], [3, 1, 2])
        kept = weakref.ref(alone.rows)
        del alone
        assert kept() is None
        before = weakref.ref(joined)
        del joined
        assert before() is None
        check([stays], [stays_plain], [1])
        stays.leave()
    finally:
        gc.enable()


def test_a_view_that_outgrows_its_row_takes_what_it_has_along():
    torch.manual_seed(0)
    pages, shelves = [page(4), page(6)], Shelves()
    made = [question(pages, {1: page(120)}) for _ in range(3)]
    for view, _ in made:
        view.join(shelves)
    views, plain = [view for view, _ in made], [plain for _, plain in made]
    check(views, plain, [4, 5, 6])
    first = views[0].rows
    for _ in range(6):
        check(views[:1], plain[:1], [1])
    assert views[0].rows is not first and views[1].rows is first
    check(views, plain, [1, 1, 1])


def test_a_long_row_stands_alone():
    torch.manual_seed(0)
    pages, shelves = [page(4), page(6)], Shelves()
    made = [question(pages, {1: page(LONGEST)}) for _ in range(2)]
    for view, _ in made:
        view.join(shelves)
    views, plain = [view for view, _ in made], [plain for _, plain in made]
    check(views, plain, [2, 2])
    check(views, plain, [1, 1])
    assert views[0].rows is not views[1].rows


def test_a_step_that_was_not_advanced_is_taken_again():
    torch.manual_seed(0)
    pages, shelves = [page(4), page(6)], Shelves()
    made = [question(pages, {}) for _ in range(2)]
    for view, _ in made:
        view.join(shelves)
        view.room(1)
    lost = torch.randn(2, 2, KV_HEADS, DIM)
    views = [view for view, _ in made]
    Attention(views, [1, 1], sharing=SHARING, dtype=F32)(0, torch.randn(2, HEADS, DIM), *lost, SCALE)
    check(views, [plain for _, plain in made], [1, 1])
    check(views, [plain for _, plain in made], [3, 1])


def test_the_same_pages_are_laid_out_once_for_as_long_as_somebody_sees_them():
    pages = [page(4), page(6), page(2)]
    first, second = View(pages), View(pages, {1: page(9)})
    assert first.stretch is second.stretch
    assert first.stretch.layer(0)[0] is second.stretch.layer(0)[0]
    other = View([*pages[:2], page(2)])
    assert other.stretch is not first.stretch
    seen = weakref.ref(first.stretch)
    del first
    assert seen() is second.stretch
    del second
    assert seen() is None


def test_a_view_counts_what_it_sees():
    view = View([page(4), page(6), page(2)], {1: page(9)})
    assert (view.shared, view.entries, view.kept_entries) == (15, 15, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "seen"), [(1, 1), (1, 200), (7, 33), (40, 700)])
def test_the_fused_kernel_returns_the_mass_of_what_it_saw(rows, seen, masked, dtype):
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(3, 2, n, DIM).to(dtype) for n in (rows, seen, seen))
    mask = None
    if masked:
        mask = torch.zeros(3, 1, 1, seen + 5)[..., :seen]
        mask[..., seen // 2 + 1 :] = float("-inf")
        mask = mask.to(dtype)
    out, mass = partial(queries, keys, values, mask, SCALE)
    expected, expected_mass = written_out(queries, keys, values, mask, SCALE)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(mass, expected_mass, **close)


def test_two_parts_make_the_whole():
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(1, 2, n, DIM) for n in (5, 30, 30))
    whole, _ = written_out(queries, keys, values, None, SCALE)
    parts = [
        written_out(queries, keys[:, :, part], values[:, :, part], None, SCALE) for part in (slice(11), slice(11, 30))
    ]
    torch.testing.assert_close(merged(*parts), whole)
