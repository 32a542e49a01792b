"""Submit a run with Hera to an argo-server and wait for its end.

    ARGO_SERVER=https://argo.example.org ARGO_TOKEN="$(argo auth token)" \\
        python examples/submit_with_hera.py train.yaml acme-training

ARGO_INSECURE=true accepts a server's own certificate. The spec's data are URIs in the store.
Ends with 0 if the run succeeded, 1 if it failed, 3 if it has not ended within DEADLINE seconds.
"""

import os
import sys
import time
from pathlib import Path

from hera.exceptions import AlreadyExists
from hera.workflows import Workflow, WorkflowsService
from hera.workflows.models import WorkflowTemplateRef

from workflows.on_cluster import template_name
from workflows.submit import prepare

ENDED = ("Succeeded", "Failed", "Error")


def main(spec: str, namespace: str) -> int:
    submission = prepare(Path(spec))
    service = WorkflowsService(
        host=os.environ["ARGO_SERVER"],
        token=os.environ.get("ARGO_TOKEN"),
        verify_ssl=os.environ.get("ARGO_INSECURE") != "true",
    )
    workflow = Workflow(
        name=submission.run,
        namespace=namespace,
        workflow_template_ref=WorkflowTemplateRef(name=template_name()),
        arguments={"config": submission.config},
        workflows_service=service,
    )
    try:
        workflow.create()
    except AlreadyExists:
        print(f"{submission.run} is there already; following it")
    # Hera's own wait() takes Pending, the phase of a run in a queue, for the end.
    until = time.monotonic() + float(os.environ.get("DEADLINE", 24 * 3600))
    phase = None
    while phase not in ENDED:
        if time.monotonic() > until:
            print(f"{submission.run}: has not ended by the deadline and goes on", file=sys.stderr)
            return 3
        time.sleep(2)
        status = service.get_workflow(submission.run, namespace=namespace).status
        now = status.phase if status else None
        if now and now != phase:
            print(f"{submission.run}: {now}", flush=True)
        phase = now
    return 0 if phase == "Succeeded" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
