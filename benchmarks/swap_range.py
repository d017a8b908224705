"""How much of a bad transfer one activation range explains: calibrate on one set, take some grids from another.

    python benchmarks/swap_range.py tiny --into SET --from SET --judge SET --site image.blocks.0.mlp.fc2

The image tower is rounded to nearest on ranges of the even images of `--into`; at the sites named, the grid of the
even images of `--from` takes its place. The centred error is that of the odd images of `--judge`.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch

from d4c import calibrate
from d4c.evaluate.agreement import tower_error
from d4c.experiments.analyze.request import read_set
from d4c.models import TorchEncoder, load, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", default="w4a4")
    parser.add_argument("--into", required=True, help="a set as `d4c analyze --images` takes it, without a name")
    parser.add_argument("--from", dest="source", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--site", nargs="+", required=True, help="layers whose input grid is taken from the other set")
    parser.add_argument("--images", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    clip, recipe = fold_batchnorm(load(arguments.model)), load_recipe(arguments.recipe)
    scheme = resolve_scheme(recipe, sites_of(clip)).of_tower("image")
    ids = torch.from_numpy(clip.tokenizer(["a photo."]))
    sets = {
        role: read_set(path, clip, arguments.images, 0).take(slice(arguments.images))
        for role, path in (("into", arguments.into), ("from", arguments.source), ("judge", arguments.judge))
    }
    ranges = {
        role: calibrate.run(clip, sets[role].take(slice(0, None, 2)), ids, scheme, recipe.calibrate)
        for role in ("into", "from")
    }
    taken = {site: ranges["from"].inputs[site] for site in arguments.site}
    ranges["swapped"] = dataclasses.replace(ranges["into"], inputs={**ranges["into"].inputs, **taken})
    pixels = sets["judge"].pixels[1::2].numpy()
    z = TorchEncoder(clip).encode_image(pixels)
    for role in ("from", "into", "swapped"):
        error = tower_error(z, TorchEncoder(wrap(clip, scheme, ranges[role])).encode_image(pixels)).centred_error
        print(f"{role}: centred error {error:.4f}")
        for site in arguments.site:
            grid = ranges[role].inputs[site]
            print(f"  {site}: scale {float(grid.scale):.4f}, zero point {float(grid.zero_point):.0f}")


if __name__ == "__main__":
    main()
