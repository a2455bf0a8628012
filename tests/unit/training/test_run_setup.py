from __future__ import annotations

import pytest

from gpt2kit.training.run_setup import report_other_choices


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("no bf16", "resume: precision was bf16-mixed, now 32-true (no bf16); the same results up to rounding\n"),
        ("as requested", ""),
    ],
)
def test_a_resumed_run_reports_what_auto_chooses_on_another_machine(
    reason: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = [{"start": {"chosen": {"precision": ["bf16-mixed", "fast"], "compile": ["off", "short"]}}}]
    report_other_choices(earlier, {"chosen": {"precision": ["32-true", reason], "compile": ["off", "short"]}})
    assert capsys.readouterr().err == message
