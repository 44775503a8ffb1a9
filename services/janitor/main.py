"""``python -m services.janitor``: opens the stores that the environment names, makes a pass, says what it has done."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Final

from prometheus_client import REGISTRY, push_to_gateway
from pydantic import ValidationError

from x2l_cluster.errors import InvalidInput, X2LError
from x2l_cluster.settings import Settings
from x2l_cluster.stores.janitor import Report, Rules, describe, janitor_of

LOG: Final = logging.getLogger("x2l.janitor")
DONE, FAULT, USAGE, LATER = 0, 1, 2, 5
"""Exit codes, as those of ``x2l``."""
_PUSH_S: Final = 5.0


def main(words: Sequence[str] | None = None) -> int:
    """One pass, or one every so often until SIGTERM. Returns the exit code of the last one."""
    parser = argparse.ArgumentParser(prog="python -m services.janitor", description=__doc__)
    parser.add_argument("--every", type=_seconds, metavar="SECONDS", help="go on with a pass every so often")
    parser.add_argument("--json", action="store_true", help="print each pass as a JSON object")
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = Settings()
        rules = Rules(keep_s=settings.keep_s, fine_s=settings.fine_s, sweep_every_s=settings.sweep_every_s)
    except ValidationError as error:
        wrong = "; ".join(f"X2L_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        print(f"in the environment: {wrong}", file=sys.stderr)  # noqa: T201
        return USAGE
    stopping = threading.Event()
    if options.every is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
    while True:
        code = _pass(settings, rules, as_json=options.json)
        _push(settings)
        if options.every is None or stopping.wait(options.every):
            return code


def _pass(settings: Settings, rules: Rules, *, as_json: bool) -> int:
    try:
        with janitor_of(
            settings.store, fine=settings.fine_store, state=settings.state, sources=settings.sources, rules=rules
        ) as janitor:
            report = janitor.once()
    except X2LError as error:
        LOG.error("no pass could be made: %s (%s)", error, error.code)
        return USAGE if isinstance(error, InvalidInput) else LATER if error.retryable else FAULT
    _tell(report, as_json=as_json)
    return DONE if report.ok else LATER if report.retryable else FAULT


def _tell(report: Report, *, as_json: bool) -> None:
    facts = report.to_dict()
    print(json.dumps(facts) if as_json else describe(facts), flush=True)  # noqa: T201


def _push(settings: Settings) -> None:
    if settings.push_url is None:
        return
    try:
        push_to_gateway(settings.push_url, job="x2l-janitor", registry=REGISTRY, timeout=_PUSH_S)
    except (OSError, ValueError) as error:  # the pass was made all the same
        LOG.warning("metrics could not be pushed: %s", error)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise ValueError
    return value
