import torch

from d4c.quantizers.grids import IntegerGrid, place_grid
from d4c.quantizers.ranges import Ranges


def test_ranges_survive_their_flat_form() -> None:
    high = torch.tensor([[1.0], [2.0]])
    weights = {"a.b": place_grid(-high, high, IntegerGrid(4, symmetric=True))}
    tensors = {"a.x": place_grid(torch.tensor(-1.0), torch.tensor(3.0), IntegerGrid(6, symmetric=False))}
    inputs = {"a.b": place_grid(torch.zeros(3), torch.arange(3.0), IntegerGrid(8, symmetric=False))}
    again = Ranges.from_tensors(Ranges(weights, tensors, inputs).to_tensors())
    for given, found in ((weights, again.weights), (tensors, again.tensors), (inputs, again.inputs)):
        assert list(given) == list(found)
        for site in given:
            assert given[site].grid == found[site].grid
            assert torch.equal(given[site].scale, found[site].scale)
            assert torch.equal(given[site].zero_point, found[site].zero_point)
