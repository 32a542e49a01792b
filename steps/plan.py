"""Decide everything that later steps need to know, before any expensive work.

Reads: the run spec's text, the catalogue, the training rows, what this machine has.
Writes: nothing but its result.
Fails when: the run spec is wrong, names what there is not, or asks for more than there is (2); a
    store or the GPU driver does not answer (3).
Safe to repeat because: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kuznia.contracts.catalogue import BaseModelEntry, Catalogue, load_catalogue
from kuznia.contracts.runspec import RunSpec, parse_run_spec
from kuznia.contracts.steps import Estimate, Hardware, PlanInputs, PlanOutputs
from kuznia.errors import InputError, collected
from kuznia.settings import rendezvous, tenant
from kuznia.sources import data_file, name_of
from steps.context import Context
from steps.estimates import Survey, Training, survey
from steps.placement import Place, cores, disk_gib, place_of, pod_of
from steps.trainer_settings import (
    epochs_of,
    fit,
    joins_rows,
    save_steps,
    settings_of,
    share_batch,
    steps_of,
    value_problems,
)
from steps.workspace import quota_problems, tenant_problems

_SPEC = "config"


def run(inputs: PlanInputs, context: Context) -> PlanOutputs:
    spec = parse_run_spec(inputs.config, _SPEC)
    catalogue = load_catalogue()
    base, place, rows = _resolve(spec, catalogue, context)
    settings, defaults = settings_of(spec, base, place.device)
    if problems := value_problems(settings, base, _SPEC):
        raise InputError(problems)
    rows = rows.only(min(rows.rows, settings.get("max_samples") or rows.rows))
    gpus = spec.gpus if place.device == "cuda" else 0
    processes = max(gpus, 1) * spec.nodes
    settings, shared = share_batch(settings, processes)
    settings, training, saved = fit(spec, base, place, rows, settings)
    steps = steps_of(rows.rows, settings, processes)
    settings.setdefault("save_steps", save_steps(steps))
    if processes > 1:
        saved.append(shared)
        place = place.times(processes)
    epochs = epochs_of(rows.rows, settings, processes)
    estimate = _estimate(place, rows, steps, epochs, training, context)
    pod = pod_of(place, catalogue, spec.gpus)
    room = _room_problems(spec, place, estimate)
    if problems := [*room, *quota_problems(pod, spec.gpus, _SPEC)]:
        raise InputError(problems)
    sizing = _sizing(spec, place, catalogue.memory_for(spec.method, base.parameters))
    unset = f"not set, so: {', '.join(defaults)}"
    reasons = (*_reasons(spec, place, settings), *saved, *sizing, unset)
    hardware = Hardware(
        device=place.device,
        gpu_class=place.gpu_class,
        gpu=place.gpu,
        gpus=gpus,
        processes=max(gpus, 1),
        nodes=spec.nodes,
        threads=cores(max(gpus, 1)),
        dtype="bfloat16" if settings["bf16"] else "float32",
        gradient_checkpointing=not settings["disable_gradient_checkpointing"],
        packing=bool(settings["packing"] or settings.get("neat_packing")),
        reasons=reasons,
    )
    for line in (*reasons, *_summary(estimate)):
        print(line, flush=True)
    return PlanOutputs(
        run=inputs.run,
        spec=spec,
        base=base,
        hardware=hardware,
        pod=pod,
        estimate=estimate,
        trainer=settings,
    )


def _resolve(
    spec: RunSpec, catalogue: Catalogue, context: Context
) -> tuple[BaseModelEntry, Place, Survey]:
    """What the spec names; InputError with everything that there is not."""
    problems = list(tenant_problems(spec, tenant(), _SPEC))
    if spec.nodes > 1 and not rendezvous():
        problems.append(
            f"{_SPEC}: nodes: {spec.nodes} nodes train together only in a Job of their own; set "
            "nodes: 1, or print that Job with `kuznia render job`"
        )
    base = place = rows = None
    with collected(problems):
        base = catalogue.base(spec.base, _SPEC)
    with collected(problems):
        place = place_of(spec, catalogue, _SPEC)
    for key, uri in (("train", spec.data.train), ("test", spec.data.test)):
        try:
            path = data_file(uri, context.workdir / key) if uri else None
        except FileNotFoundError:
            problems.append(f"{_SPEC}: data.{key}: {name_of(uri or '')} does not exist; correct it")
        else:
            if path and key == "train":
                system = base.default_system if base else None
                with collected(problems):
                    rows = survey(path, name_of(uri or ""), spec.data, system)
    if problems or base is None or place is None or rows is None:
        raise InputError(problems)
    if spec.data.test is None:
        rows = rows.only(round(rows.rows * (1 - spec.data.test_fraction)))
    return base, place, rows


def _estimate(
    place: Place, rows: Survey, steps: int, epochs: float, training: Training, context: Context
) -> Estimate:
    tokens = int(rows.tokens * epochs)
    seconds = training.seconds(tokens, steps, place.flops)
    disk = context.store.local_path("") or context.workdir
    return Estimate(
        rows=rows.rows,
        tokens=tokens,
        train_seconds=round(seconds, 1),
        memory_gib=round(training.memory_gib, 2),
        memory_available_gib=round(place.memory_gib, 2),
        disk_gib=round(training.disk_gib, 2),
        disk_available_gib=round(disk_gib(disk), 2),
        cost=round(seconds / 3600 * place.price_per_hour, 2),
        flop=training.flop(tokens),
        basis=f"{training.flop(tokens):.2e} FLOP at {place.flops:.2e} FLOP/s; {steps} steps",
    )


def _sizing(spec: RunSpec, place: Place, needs: float) -> Iterator[str]:
    """What to say where the catalogue's rule of thumb asks for more than these GPUs have.

    It does not refuse: the estimate of this very run does.
    """
    gpus = spec.gpus * spec.nodes
    if place.device == "cuda" and needs > (has := place.memory_gib * gpus):
        yield (
            f"the catalogue's sizing for {spec.method} of {spec.base} asks for {needs:.1f} GiB, "
            f"{gpus} x {place.gpu_class or 'GPU'} has {has:g} GiB: it fits by the estimate below"
        )


def _room_problems(spec: RunSpec, place: Place, estimate: Estimate) -> Iterator[str]:
    if estimate.memory_gib > estimate.memory_available_gib:
        smaller = "method: lora" if spec.method == "full" else "a smaller base or cutoff_len"
        yield (
            f"{_SPEC}: hardware: {place.gpu_class or place.device} has "
            f"{estimate.memory_available_gib} GiB memory, this run needs about "
            f"{estimate.memory_gib} GiB; set {smaller}, or hardware with more memory"
        )
    if estimate.disk_gib > estimate.disk_available_gib:
        yield (
            f"{_SPEC}: base: this run needs about {estimate.disk_gib} GiB of disk, "
            f"{estimate.disk_available_gib} GiB are free; free some or set a smaller base"
        )


def _reasons(spec: RunSpec, place: Place, settings: dict[str, Any]) -> Iterator[str]:
    yield f"{place.gpu_class or place.device}: {place.why}"
    if place.device == "cpu":
        if settings["bf16"]:
            yield "bfloat16, an adapter in float32: these cores multiply it twice as fast"
        else:
            yield "float32: these cores do not multiply bfloat16 any faster"
        yield f"{cores()} threads: one for each core"
    else:
        yield "bfloat16: half the memory of float32 at full speed"
    given = [
        key for key in ("disable_gradient_checkpointing", "packing") if key in spec.llamafactory
    ]
    if given:
        yield f"{' and '.join(given)}: as llamafactory sets"
    if settings["disable_gradient_checkpointing"] and "disable_gradient_checkpointing" not in given:
        yield "no gradient checkpointing: it saves memory that is not short, for a third more work"
    if joins_rows(settings):
        yield "a batch is one sequence where that is exact: no padding, common beginnings once"
    elif not settings["packing"] and "packing" not in given:
        yield "no packing: rows packed together see each other's text without flash attention"


def _summary(estimate: Estimate) -> Iterator[str]:
    yield f"about {estimate.train_seconds:.0f} s of training: {estimate.basis}"
    yield f"{estimate.rows} rows, about {estimate.tokens} tokens over all epochs"
    yield f"about {estimate.memory_gib} of {estimate.memory_available_gib} GiB memory"
    yield f"about {estimate.disk_gib} of {estimate.disk_available_gib} GiB disk"
    yield f"about {estimate.cost:.2f} EUR"
