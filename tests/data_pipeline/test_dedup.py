"""Near-duplicates: hashes that survive what happens to videos, and a search that finds and keeps the right
ones."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_pipeline.stages.dedup import find_duplicates, perceptual_hash
from tests.data_pipeline.test_shots import scene


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def flipped(words: tuple[str, ...], bits: int, rng: np.random.Generator) -> tuple[str, ...]:
    """A fingerprint whose frames differ by so many bits each."""
    values = [int(word, 16) for word in words]
    for index in range(len(values)):
        for bit in rng.choice(64, bits, replace=False):
            values[index] ^= 1 << int(bit)
    return tuple(f"{value:016x}" for value in values)


def random_words(rng: np.random.Generator, frames: int = 5) -> tuple[str, ...]:
    return tuple(f"{int(value):016x}" for value in rng.integers(1, 2**63, frames))


def test_hash_survives_size_compression_and_brightness() -> None:
    image = scene(3, 1)[0]
    original = perceptual_hash(image)
    smaller = cv2.resize(image, (106, 60), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])
    assert distance(original, perceptual_hash(smaller)) <= 4
    assert distance(original, perceptual_hash(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))) <= 4
    assert distance(original, perceptual_hash((image * 0.8 + 10).astype(np.uint8))) <= 4
    others = [distance(original, perceptual_hash(scene(seed, 1)[0])) for seed in range(4, 12)]
    assert min(others) > 12


def test_flat_frames_are_like_nothing() -> None:
    black = np.zeros((90, 160, 3), np.uint8)
    flat = perceptual_hash(black)
    assert flat == perceptual_hash(black + 200) == "0" * 16
    assert find_duplicates({f"clip{index}": (flat,) * 5 for index in range(5)}, {}) == {}
    rng = np.random.default_rng(0)
    mixed = {f"clip{index}": (flat, flat, flat, *random_words(rng, 2)) for index in range(5)}
    assert find_duplicates(mixed, {}) == {}


@pytest.mark.parametrize(("bits", "found"), [(0, True), (3, True), (6, True), (7, False), (12, False)])
def test_threshold(bits: int, found: bool) -> None:
    rng = np.random.default_rng(bits)
    prints = {f"other{index}": random_words(rng) for index in range(300)}
    prints["b"] = random_words(rng)
    prints["a"] = flipped(prints["b"], bits, rng)
    assert find_duplicates(prints, {"a": 0.2, "b": 0.9}) == ({"a": "b"} if found else {})


def test_better_copy_stays_and_names_decide_between_equals() -> None:
    words = random_words(np.random.default_rng(0))
    prints = dict.fromkeys("cab", words)
    assert find_duplicates(prints, {"a": 0.1, "b": 0.5, "c": 0.5}) == {"a": "b", "c": "b"}
    assert find_duplicates(prints, {}) == {"b": "a", "c": "a"}


def test_clips_of_one_source_are_no_copies_where_sources_are_given() -> None:
    words = random_words(np.random.default_rng(0))
    prints = dict.fromkeys("abc", words)
    assert find_duplicates(prints, {}, sources={"a": "x", "b": "x", "c": "y"}) == {"c": "a"}


def test_equal_copies_follow_the_first_of_them() -> None:
    rng = np.random.default_rng(0)
    words = random_words(rng)
    prints = {"best": flipped(words, 3, rng), "a": words, "b": words, "c": words}
    assert find_duplicates(prints, {"best": 1.0}) == dict.fromkeys("abc", "best")


def test_a_chain_does_not_swallow_clips_that_differ() -> None:
    """a and b, b and c are copies, a and c are not: the best one's copies go, the rest stays."""
    rng = np.random.default_rng(0)
    a = random_words(rng)
    b = tuple(f"{int(word, 16) ^ 0b11111:016x}" for word in a)
    c = tuple(f"{int(word, 16) ^ 0b1111100000:016x}" for word in b)
    prints = {"a": a, "b": b, "c": c}
    assert find_duplicates(prints, {"a": 3, "b": 2, "c": 1}) == {"b": "a"}
    assert find_duplicates(prints, {"a": 2, "b": 3, "c": 1}) == {"a": "b", "c": "b"}


def test_same_result_in_any_order_and_fast_on_many() -> None:
    rng = np.random.default_rng(1)
    prints = {f"clip{index:05}": random_words(rng) for index in range(20_000)}
    for index in range(200):
        prints[f"copy{index:05}"] = flipped(prints[f"clip{index:05}"], 4, rng)
    found = find_duplicates(prints, {})
    assert found == {f"copy{index:05}": f"clip{index:05}" for index in range(200)}
    assert list(find_duplicates(dict(reversed(prints.items())), {})) == list(found)


def test_thousands_of_equal_clips_take_no_quadratic_memory() -> None:
    words = random_words(np.random.default_rng(0))
    found = find_duplicates({f"{index:05}": words for index in range(20_000)}, {})
    assert len(found) == 19_999
    assert set(found.values()) == {"00000"}
