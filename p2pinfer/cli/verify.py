"""``p2pinfer verify``: check a file of evidence offline."""

import json
import sys
from pathlib import Path

from cyclopts import App

from p2pinfer.cli.options import AsJson
from p2pinfer.cli.running import run_task
from p2pinfer.core.errors import EXIT_DAMAGED, UserError

app = App(name="verify", help_format="plaintext")


@app.default
def verify(file: Path, /, *, as_json: AsJson = False) -> None:
    """Check a certificate or a fraud proof: signatures, receipts and, if the layers are here, rows.

    The exit code is 4 if a check fails.

    Parameters
    ----------
    file: Path
        Certificate written by --certificate, or a proof from the data directory's folder "proofs".
    """
    from p2pinfer.core.certificate import FILE_BYTES_MAX
    from p2pinfer.node.model_supply import open_store
    from p2pinfer.node.verify import verify_file

    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}; name a certificate or a proof"
        ) from error
    store = open_store()

    async def run() -> None:
        found = await verify_file(data, store)
        if as_json:
            print(json.dumps(found.as_dict()))
        else:
            for line in found.lines():
                print(line)
        if not found.held:
            sys.exit(EXIT_DAMAGED)

    run_task(run)
