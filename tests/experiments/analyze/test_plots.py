import numpy as np

from d4c.experiments.analyze.plots import _table, _with_foreground


def test_background_turns_faint_below_and_pictures_stay_above() -> None:
    pictures = np.zeros((2, 32, 32, 3))
    foreground = np.array([[[True, False], [False, False]], [[False, False], [False, True]]])
    shown = _with_foreground(pictures, foreground)
    assert shown.shape == (68, 68, 3)  # two of 32 and a gap of 2, both ways
    assert (shown[:32, :32] == 0).all()
    below = shown[34:66]
    assert (below[:16, :16] == 0).all()
    assert (below[:16, 16:32] == 0.85).all()
    assert (below[16:, 34 + 16 : 66] == 0).all()
    assert (below[:16, 34 : 34 + 16] == 0.85).all()


def test_layers_find_their_cell_by_kind_and_block() -> None:
    errors = {"image.patch_embedding": 0.5, "image.blocks.0.mlp.fc1": 0.1, "image.blocks.1.mlp.fc1": 0.2}
    rows, columns, values = _table(errors)
    assert (rows, columns) == (["image patch_embedding", "image mlp.fc1"], ["–", "0", "1"])
    np.testing.assert_array_equal(values, [[0.5, np.nan, np.nan], [np.nan, 0.1, 0.2]])
