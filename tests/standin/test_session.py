"""The session's driver is the stand-in: no device test is skipped for want of one."""

from helpers import fake_tensorrt
from helpers.driver_machine import why_no_gpu
from helpers.standin_session import ON_STANDIN

pytestmark = ON_STANDIN


def test_the_driver_is_the_standin() -> None:
    assert why_no_gpu() is None
    assert fake_tensorrt.driver().standin_fault_count() == 0
