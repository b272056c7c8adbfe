"""The sign test: which of two wins more often than chance would have it?"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SignTest", "sign_test"]


@dataclass(frozen=True, kw_only=True)
class SignTest:
    """Result of a two-sided sign test.

    Attributes:
        wins_a, wins_b: comparisons that one of the two won.
        ties: comparisons that neither won; they do not enter the test.
        p_value: probability, in (0, 1], of a split at least as uneven if either won with equal chance; 1
            where nothing was decided.
    """

    wins_a: int
    wins_b: int
    ties: int
    p_value: float


def sign_test(wins_a: int, wins_b: int, ties: int = 0) -> SignTest:
    """Tests whether both win equally often; exact, two-sided, ties left out and reported.

    Args:
        wins_a: comparisons won by the first, at least 0.
        wins_b: by the second.
        ties: by neither.

    Reference:
        W. J. Dixon, A. M. Mood, "The statistical sign test", Journal of the American Statistical Association
        41, 1946. Of paired right and wrong answers it is the exact form of McNemar's test (1947).
    """
    for name, count in (("wins_a", wins_a), ("wins_b", wins_b), ("ties", ties)):
        if count < 0:
            raise ValueError(f"{name}: got {count}, expected at least 0")
    decided = wins_a + wins_b
    # In whole numbers: 2^decided overflows a float from 1024 comparisons on.
    tail, ways = 0, 1
    for count in range(min(wins_a, wins_b) + 1):
        tail += ways
        ways = ways * (decided - count) // (count + 1)
    p_value = min(1.0, 2 * tail / (1 << decided))
    return SignTest(wins_a=wins_a, wins_b=wins_b, ties=ties, p_value=p_value)
