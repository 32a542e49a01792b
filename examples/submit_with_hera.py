"""Submit a run with Hera to an argo-server and wait for its end.

    ARGO_SERVER=https://argo.example.org ARGO_TOKEN="$(argo auth token)" \\
        python examples/submit_with_hera.py train.yaml acme-training

ARGO_INSECURE=true accepts a server's own certificate. The spec's data are URIs in the store. The
same command again follows the run, or starts it again if it failed: what is done is not repeated.
Ends with 0 if the run succeeded, 1 if it failed, 2 if the spec is wrong. With 130 by Ctrl-C, and 3
if the server does not answer or DEADLINE seconds are over: then the run goes on.
"""

import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from hera.exceptions import AlreadyExists, HeraException, NotFound
from hera.workflows import Workflow, WorkflowsService
from hera.workflows.models import WorkflowTemplateRef
from requests import RequestException, Session

from kuznia.errors import KuzniaError
from workflows.on_cluster import template_name
from workflows.render import labels_of, submission

ENDED = ("Succeeded", "Failed", "Error")
GOES_ON = "a run that was submitted goes on, and the same command follows it"


def main(spec: str, namespace: str) -> int:
    server = os.environ["ARGO_SERVER"]
    session = Session()
    session.request = partial(session.request, timeout=30)
    service = WorkflowsService(
        host=server,
        token=os.environ.get("ARGO_TOKEN"),
        verify_ssl=os.environ.get("ARGO_INSECURE") != "true",
        namespace=namespace,
        session=session,
    )
    try:
        # Refuses data that the cluster cannot read.
        submitted = submission(Path(spec))
        workflow = Workflow(
            name=submitted.run,
            namespace=namespace,
            labels=labels_of(submitted),
            workflow_template_ref=WorkflowTemplateRef(name=template_name()),
            arguments={"config": submitted.config},
            workflows_service=service,
        )
        until = time.monotonic() + float(os.environ.get("DEADLINE", 24 * 3600))
        start(workflow, service, submitted.run, until)
        return wait(service, submitted.run, until)
    except KuzniaError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"stopped following; {GOES_ON}", file=sys.stderr)
        return 130
    except RequestException as error:
        problem = f"{server}: does not answer ({type(error).__name__})"
    except (HeraException, TimeoutError) as error:
        problem = f"{server}: {error}"
    print(f"error: {problem}; {GOES_ON}", file=sys.stderr)
    return 3


def start(workflow: Workflow, service: WorkflowsService, run: str, until: float) -> None:
    """Create the run unless it runs or has succeeded; one that failed makes room first."""
    while time.monotonic() < until:
        try:
            workflow.create()
            print(f"{run}: submitted")
            return
        except AlreadyExists:
            pass
        with suppress(NotFound, AlreadyExists):
            found = service.get_workflow(run)
            facts, phase = found.metadata, found.status.phase if found.status else None
            if not facts.deletion_timestamp:
                if phase not in ("Failed", "Error"):
                    print(f"{run}: is there already; following it")
                    return
                print(f"{run}: ended before ({phase}); what is done is kept, the rest starts again")
                # This very state, with its pods first: the next run's pods have the same names.
                seen = {"uid": facts.uid, "resource_version": facts.resource_version}
                service.delete_workflow(run, propagation_policy="Foreground", **seen)
        time.sleep(1)
    raise TimeoutError(f"{run}: is being deleted and does not go")


def wait(service: WorkflowsService, run: str, until: float) -> int:
    """See the run to its end; Hera's own wait() takes Pending, the phase in a queue, for it."""
    phase = None
    while phase not in ENDED:
        if time.monotonic() > until:
            raise TimeoutError(f"{run}: has not ended by the deadline")
        time.sleep(2)
        status = service.get_workflow(run).status
        now = status.phase if status else None
        if now and now != phase:
            print(f"{run}: {now}", flush=True)
        phase = now
    return 0 if phase == "Succeeded" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
