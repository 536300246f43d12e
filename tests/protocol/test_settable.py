"""Settings that may be changed while a run is running are checked before the change is requested."""

from __future__ import annotations

import pytest

from engine.config.settable import SETTABLE, check_value, get_help


def test_each_setting_is_explained_and_checked() -> None:
    good = (1e-4, 0, 100, None, 25)
    bad = (0, -1, 0, 0.5, "often")
    for key, fine, wrong in zip(SETTABLE, good, bad, strict=True):
        assert get_help(key)
        check_value(key, fine)
        with pytest.raises(ValueError, match=rf"{key} .*, not {wrong!r}"):
            check_value(key, wrong)
