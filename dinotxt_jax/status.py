"""Shows how a run is doing: step, rate, time left, checkpoint, evaluation, warnings.

    python -m dinotxt_jax.status --workdir=DIR [--watch] [--every=SECONDS]

Reads files only, so that it works on any host that sees the work directory, during the run and
afterwards. --watch repeats until the run has ended.
"""

from __future__ import annotations

import sys
import time

from absl import flags

from dinotxt_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
_WATCH = flags.DEFINE_boolean("watch", False, "Repeat until the run has ended.")
_EVERY = flags.DEFINE_float("every", 10.0, "With --watch: seconds between looks.", lower_bound=0.1)


def _body() -> None:
    from dinotxt_jax.storage.addresses import to_address
    from dinotxt_jax.training.status import described_status, run_status

    while True:
        status = run_status(to_address(_WORKDIR.value))
        if _WATCH.value and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")  # clears the screen
        print("\n".join(described_status(status)), flush=True)
        if not (_WATCH.value and status.is_running):
            return
        time.sleep(_EVERY.value)


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
