import itertools
import random
import string

from d4c.recipes.seeds import derive_seed


def test_the_seed_is_the_head_of_a_sum_that_any_shell_gives() -> None:
    # printf '0/synthesize/3/17' | sha256sum   begins with  06e1496efef5f3d7
    assert derive_seed(0, "synthesize", 3, 17) == 0x06E1496EFEF5F3D7 >> 1


def test_equal_parts_give_equal_seeds_and_unequal_ones_do_not() -> None:
    rng = random.Random(0)
    stages = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(10)]
    units = list(itertools.product(range(5), stages, range(20), range(10)))
    seeds = {derive_seed(seed, stage, item, step) for seed, stage, item, step in units}
    assert len(seeds) == len(units)
    assert {derive_seed(seed, stage, item, step) for seed, stage, item, step in units} == seeds


def test_order_and_number_of_parts_matter() -> None:
    seeds = [derive_seed(0), derive_seed(0, 1), derive_seed(1, 0), derive_seed(0, 1, 2), derive_seed(0, 12)]
    assert len(set(seeds)) == 5


def test_seeds_fill_63_bits_as_generators_take_them() -> None:
    seeds = [derive_seed(0, "stage", i) for i in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):  # each bit is set in about half of them; 6 standard deviations are 95
        assert abs(sum(seed >> bit & 1 for seed in seeds) - 500) < 95
