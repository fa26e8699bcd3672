"""Codes for words: the same word, the same code, whatever the hash does."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memdesc.errors import FormatError
from memdesc.map.codebook import CodeBook

word_lists = st.lists(
    st.one_of(st.integers(0, 20), st.integers(0, (1 << 64) - 1)), max_size=60
).map(lambda words: np.array(words, np.uint64))


def many(count: int, seed: int = 1) -> NDArray[np.uint64]:
    """Distinct words."""
    words = np.random.default_rng(seed).integers(1, 1 << 63, count, np.uint64)
    assert np.unique(words).size == count
    return words


@given(st.lists(word_lists, max_size=5))
def test_codes_number_words_in_order_of_first_sight(batches: list[NDArray[np.uint64]]) -> None:
    book = CodeBook()
    seen = [0]
    for words in batches:
        codes = book.codes(words)
        seen += [word for word in dict.fromkeys(words.tolist()) if word not in seen]
        assert codes.tolist() == [seen.index(word) for word in words.tolist()]
        assert book.keys.tolist() == seen
        assert len(book) == len(seen)


@given(st.lists(word_lists, max_size=5))
def test_count_is_bincount_by_code(batches: list[NDArray[np.uint64]]) -> None:
    book = CodeBook()
    for words in batches:
        weights = np.arange(1.0, words.size + 1)
        counted = book.count(words, weights)
        assert counted.size <= len(book)
        expected = np.bincount(book.codes(words), weights, minlength=len(book))
        assert np.array_equal(counted, expected[: counted.size])
        assert not expected[counted.size :].any()


@pytest.mark.parametrize("count", [100, 180, 200, 700, 1500, 5000, 60_000])
def test_words_that_share_a_slot_keep_their_own_codes(count: int) -> None:
    book = CodeBook()
    words = many(count)
    codes = book.codes(words)
    assert codes.tolist() == list(range(1, count + 1))
    again = np.random.default_rng(2).integers(0, count, 3 * count)
    assert np.array_equal(book.codes(words[again]), codes[again])
    weights = np.ones(again.size)
    assert np.array_equal(book.count(words[again], weights), np.bincount(codes[again], weights))


def test_a_few_hundred_words_need_no_slow_path() -> None:
    """The whole point: every word of a real machine has a slot of its own."""
    book = CodeBook()
    for word in many(500):
        book.codes(np.array([word], np.uint64))
    assert book._tables.owners.size == len(book) == 501


def test_a_word_that_was_never_added_matches_no_empty_slot() -> None:
    book = CodeBook()
    words = many(50_000)
    book.codes(words[:1])
    assert np.array_equal(book.codes(words), np.arange(1, words.size + 1))


def test_too_many_words_are_an_error_and_leave_the_book_as_it_was() -> None:
    book = CodeBook("page flag words")
    words = np.arange(0x10000, dtype=np.uint64)
    assert np.array_equal(book.codes(words), np.arange(0x10000))
    with pytest.raises(FormatError, match="more than 65536 distinct page flag words") as caught:
        book.codes(np.array([1 << 40, 3], np.uint64))
    assert caught.value.hint
    with pytest.raises(FormatError):
        book.count(np.array([1 << 40], np.uint64), np.ones(1))
    assert len(book) == 0x10000
    assert np.array_equal(book.codes(words), np.arange(0x10000))


def test_no_words_are_no_codes() -> None:
    none = np.zeros(0, np.uint64)
    assert CodeBook().codes(none).size == 0
    assert not CodeBook().count(none, np.zeros(0)).any()


def test_threads_agree_on_codes() -> None:
    book = CodeBook()
    words = many(3000)
    barrier = threading.Barrier(4)
    results: list[dict[int, int]] = []

    def look_up(seed: int) -> None:
        random = np.random.default_rng(seed)
        barrier.wait()
        mine: dict[int, int] = {}
        for _ in range(60):
            some = random.choice(words, 50)
            codes = book.codes(some)
            # What a code means is there as soon as the code is.
            assert np.array_equal(book.keys[codes], some)
            for word, code in zip(some.tolist(), codes.tolist(), strict=True):
                assert mine.setdefault(word, code) == code
        results.append(mine)

    threads = [threading.Thread(target=look_up, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    together: dict[int, int] = {}
    for mine in results:
        for word, code in mine.items():
            assert together.setdefault(word, code) == code
    assert len(set(together.values())) == len(together)
