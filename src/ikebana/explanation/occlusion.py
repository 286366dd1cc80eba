"""Heat maps by occlusion, for any classifier.

A window hides one part of the photo after another. The map shows how much the class loses.

Source: Zeiler and Fergus 2014, arXiv:1311.2901.
"""

import numpy as np

from ikebana.explanation import masking
from ikebana.explanation.masking import CELLS, Predict

# A window hides WINDOW_CELLS x WINDOW_CELLS cells and moves by STEP_CELLS: 49 windows.
WINDOW_CELLS, STEP_CELLS = 4, 2


def compute_map(predict: Predict, photo: np.ndarray, class_index: int) -> np.ndarray:
    """Compute how much a class loses where a window hides the photo.

    Args:
        photo: uint8 [side, side, 3].
    Returns:
        float32 [rows, columns], at least 0: by how much the log odds fall, as the mean over the windows
        that cover a place.
    """
    blurred = masking.blur(photo)
    starts = range(0, CELLS - WINDOW_CELLS + 1, STEP_CELLS)
    windows = [np.s_[top : top + WINDOW_CELLS, left : left + WINDOW_CELLS] for top in starts for left in starts]
    hidden = np.zeros((len(windows), CELLS, CELLS), bool)
    for number, window in enumerate(windows):
        hidden[number][window] = True
    changed = [masking.hide_cells(photo, blurred, ~cells) for cells in hidden]
    log_odds = masking.compute_log_odds(predict, np.stack([photo, *changed]), class_index)
    falls = log_odds[0] - log_odds[1:]
    mean = np.tensordot(falls, hidden, 1) / hidden.sum(0)
    # Places that only the same windows cover have the same value.
    return np.maximum(mean, 0)[::STEP_CELLS, ::STEP_CELLS].astype(np.float32)
