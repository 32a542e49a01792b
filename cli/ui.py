"""Open MLflow on the local store."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress

import click

EPILOG = """\b
example:
  kuznia ui --port 5001
"""


@click.command(epilog=EPILOG)
@click.option("--port", default=5000, show_default=True, help="Port to listen on.")
@click.option("--open", "browse", is_flag=True, help="Open it in the browser too.")
def command(port: int, browse: bool) -> None:
    """Show runs, metrics and registered models in MLflow's pages until Ctrl-C."""
    import httpx

    from kuznia import settings
    from kuznia.errors import DependencyError
    from kuznia.serving import check_port, stop
    from workflows.environments import python_of, variables_of

    tracking = settings.tracking_uri()
    if tracking.startswith(("http://", "https://")):
        click.echo(f"MLflow is at {tracking} (MLFLOW_TRACKING_URI)")
        if browse:
            click.launch(tracking)
        return
    check_port("127.0.0.1", port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    home = settings.home()
    home.mkdir(parents=True, exist_ok=True)
    log, url = home / "mlflow.log", f"http://127.0.0.1:{port}"
    python = python_of("mlflow", say=lambda text: click.echo(text, err=True))
    line = [
        *(str(python), "-m", "mlflow", "server", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", tracking),
        *("--artifacts-destination", (home / "mlartifacts").as_uri()),
    ]
    click.echo("starting MLflow (about 15 s)", err=True)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as out:
        server = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **variables_of("mlflow"), **quiet},
        )
    try:
        for _ in range(240):
            if server.poll() is not None:
                break
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=2, trust_env=False).is_success:
                    click.echo(f"MLflow: {url}  (log: {log}; Ctrl-C stops it)")
                    if browse:
                        click.launch(url)
                    server.wait()
            time.sleep(0.5)
        raise DependencyError(f"MLflow does not run (exit code {server.poll()}); see {log}")
    except KeyboardInterrupt:
        click.echo("\nstopped", err=True)
    finally:
        stop(server)
