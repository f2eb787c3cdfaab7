"""A pytest plugin: the fixture ``flow_audit``, and a marker that checks a contract over all its losses.

::

    @pytest.mark.flow_contract({"loss": {"head": "open", "backbone": "blocked"}})
    def test_flow(flow_audit):
        a = flow_audit(model)
        a.loss("loss", model(x).mean())

The marked test fails if the contract is broken, or if a loss that it names was not reported. A test that fails shows
the matrix. ``assert_flow`` needs nothing of this; its failures show the test's own line and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stopgrad.flow.audit import audit
    from stopgrad.flow.parts import Modules

_AUDITS: pytest.StashKey[list[audit]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flow_contract(contract): the audits of `flow_audit` must keep this contract")


@pytest.fixture
def flow_audit(request: pytest.FixtureRequest) -> Iterator[Callable[..., audit]]:
    """Start an audit that ends with the test: ``a = flow_audit(model)``, with the arguments of ``stopgrad.audit``.

    It knows the marker's contract, so that this may name submodules and parameters.
    """
    from stopgrad.flow.audit import audit

    audits = request.node.stash.setdefault(_AUDITS, [])
    with ExitStack() as stack:

        def start(modules: Modules, **options: Any) -> audit:
            __tracebackhide__ = True
            stack.close()  # one audit at a time
            marker = request.node.get_closest_marker("flow_contract")
            if marker is not None and len(marker.args) == 1:
                options = {"contract": marker.args[0], **options}
            audits.append(stack.enter_context(audit(modules, **options)))
            return audits[-1]

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """After a marked test has passed: did its audits keep the contract?"""
    result = yield
    marker = item.get_closest_marker("flow_contract")
    if marker is not None:
        audits = item.stash.get(_AUDITS, [])
        if not audits or len(marker.args) != 1:
            pytest.fail("flow_contract(contract) needs one contract, and a test that uses flow_audit", pytrace=False)
        broken = next(filter(None, (_broken(each, marker.args[0]) for each in audits)), None)
        if broken is not None:
            pytest.fail(broken, pytrace=False)  # the message says it all; there is no line of the test to show
    return result


def _broken(of: audit, contract: Any) -> str | None:
    """What an audit says against a contract, in words."""
    try:
        of.check(contract)
    except (AssertionError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call" and report.failed:
        for each in item.stash.get(_AUDITS, []):
            report.sections.append(("flow matrix", str(each.matrix())))
    return report
