import dataclasses
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from d4c.quantizers.moments import Moments, merge_all
from d4c.ranks import Ranks
from d4c.reconstruct import solve
from d4c.reconstruct.solve import Split, strongest


@pytest.mark.parametrize(("fitted", "num", "sizes", "parts"), [
    (128, 160, [32] * 4 + [8] * 4, (3, 1, 4)),
    (512, 576, [32] * 16 + [16] * 4, (12, 4, 4)),
    (6, 10, [2, 2, 2, 1, 1, 1, 1], (2, 1, 4)),
    (1, 2, [1, 1], (1, 0, 1)),
])  # fmt: skip
def test_samples_are_split_into_batches_for_three_purposes(
    fitted: int, num: int, sizes: list[int], parts: tuple[int, int, int]
) -> None:
    split = Split.of(fitted, num)
    assert [s.stop - s.start for s in split.batches] == sizes
    assert [s.start for s in split.batches[1:]] == [s.stop for s in split.batches[:-1]]
    assert split.batches[-1].stop == num
    assert (len(split.fitted), len(split.tried_on), len(split.held)) == parts
    assert [*split.fitted, *split.tried_on, *split.held] == list(range(len(sizes)))
    assert split.batches[split.held[0]].start == fitted


@dataclasses.dataclass(frozen=True)
class Others(Ranks):
    """A process that already has what the others would send."""

    held: Mapping[int, Sequence[Tensor]] = dataclasses.field(default_factory=dict)

    def collect(self, mine: Mapping[int, Sequence[Tensor]], count: int) -> list[list[Tensor]]:
        """All of them."""
        return [list({**self.held, **mine}[i]) for i in range(count)]


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_are_the_same_bits_for_any_number_of_processes(count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(count)
    weight = torch.randn(2, 3, generator=generator)
    leaves = [
        Moments.of(x, x + 0.1 * torch.randn(x.shape, generator=generator), weight, None, centred=True)
        for x in torch.randn(count, 7, 3, generator=generator)
    ]
    expected = merge_all(leaves, weight)
    made: dict[int, Sequence[Tensor]] = {}
    seen: list[int] = []
    for rank in range(size):
        ranks = Ranks(rank, size)
        for number, group in enumerate(solve._groups(count, ranks)):
            if group.is_mine:
                seen += group.leaves
                made[number] = merge_all((leaves[i] for i in group.leaves), weight).tensors()
    assert sorted(seen) == list(range(count))  # everything once
    for rank in range(size):
        found = solve._merge_shared(leaves.__getitem__, range(count), weight, Others(rank, size, held=made))
        assert all(torch.equal(a, b) for a, b in zip(found.tensors(), expected.tensors(), strict=True))


def test_every_process_runs_the_batches_whose_sums_it_adds_up() -> None:
    split = Split.of(128, 160)
    for size in (1, 2, 3, 5):
        shares = [split.mine(Ranks(rank, size)) for rank in range(size)]
        assert sorted(number for share in shares for number in share) == list(range(8))


def test_the_strongest_ridge_of_those_that_are_as_good_is_taken_with_its_best_step() -> None:
    near = solve.AS_GOOD - 0.01
    beyond = solve.AS_GOOD + 0.01
    trials = [(1.0, 0.01, 0.0), (near, 0.1, 0.0), (near - 0.02, 0.1, 0.5), (beyond, 0.1, 1.0), (beyond, 0.3, 0.5)]
    assert strongest(trials) == (0.1, 0.5)
    assert strongest([(0.0, 0.01, 0.0), (0.0, 1.0, 0.5), (1e-9, 1.0, 1.0)]) == (1.0, 0.5)  # nothing to lose
    assert strongest([(1.0, 0.01, 0.5), (beyond, 1.0, 0.5)]) == (0.01, 0.5)
