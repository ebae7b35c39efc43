"""Errors of the data are told from wrong options, though both are ValueErrors."""

from __future__ import annotations

import pytest

from ffcv_cropmix.errors import DataError, wrong_options


def test_wrong_options_end_the_program_and_data_errors_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, wrong_options():
        raise ValueError("scale is above 0,\ngot -1")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: scale is above 0, got -1\n"
    with pytest.raises(DataError, match=r"^x.beton is empty$"), wrong_options():
        raise DataError("x.beton is empty")
    assert issubclass(DataError, ValueError)  # as FFCV raises
