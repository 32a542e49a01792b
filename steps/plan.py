"""Decide everything that later steps need to know, before any expensive work.

Reads: the run spec's text, the catalogue, the training rows, what this machine has.
Writes: nothing but its result.
Fails when: the run spec is wrong, names what there is not, or asks for more than there is (2); a
    store or the GPU driver does not answer (3).
Safe to repeat because: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kuznia import machine
from kuznia.contracts.catalogue import BaseModelEntry, Catalogue, load_catalogue
from kuznia.contracts.runspec import RunSpec, parse_run_spec
from kuznia.contracts.steps import Estimate, Hardware, PlanInputs, PlanOutputs
from kuznia.errors import InputError
from kuznia.sources import data_file, name_of
from steps.context import Context
from steps.estimates import Survey, Training, survey
from steps.placement import Place, place_of
from steps.trainer_settings import save_steps, settings_of, steps_of, value_problems

_SPEC = "config"
_ROOM = 0.9
"""Share of the memory that an estimate may fill before the plan starts to save memory."""


def run(inputs: PlanInputs, context: Context) -> PlanOutputs:
    spec = parse_run_spec(inputs.config, _SPEC)
    base, place, rows = _resolve(spec, load_catalogue(), context)
    settings, defaults = settings_of(spec, base, place.device)
    if problems := value_problems(settings, base, _SPEC):
        raise InputError(problems)
    settings, training, saved = _fit(spec, base, place, rows, settings)
    settings.setdefault("save_steps", save_steps(steps_of(rows.rows, settings)))
    estimate = _estimate(spec, place, rows, settings, training, context)
    if problems := list(_room_problems(spec, place, estimate)):
        raise InputError(problems)
    reasons = (*_reasons(spec, place, settings), *saved, f"not set, so: {', '.join(defaults)}")
    hardware = Hardware(
        device=place.device,
        gpu_class=place.gpu_class,
        gpus=int(place.device == "cuda"),
        threads=machine.cores(),
        dtype="float32" if place.device == "cpu" else "bfloat16",
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
        estimate=estimate,
        trainer=settings,
    )


def _resolve(
    spec: RunSpec, catalogue: Catalogue, context: Context
) -> tuple[BaseModelEntry, Place, Survey]:
    """What the spec names; InputError with everything that there is not."""
    problems: list[str] = []
    base = place = rows = None
    try:
        base = catalogue.base(spec.base, _SPEC)
    except InputError as error:
        problems += error.problems
    try:
        place = place_of(spec, catalogue, _SPEC)
    except InputError as error:
        problems += error.problems
    for key, uri in (("train", spec.data.train), ("test", spec.data.test)):
        try:
            path = data_file(uri, context.workdir / key) if uri else None
        except FileNotFoundError:
            problems.append(f"{_SPEC}: data.{key}: {name_of(uri or '')} does not exist; correct it")
        else:
            if path and key == "train":
                system = base.default_system if base else None
                rows = survey(path, name_of(uri or ""), spec.data, system)
    if problems or base is None or place is None or rows is None:
        raise InputError(problems)
    if spec.data.test is None:
        kept = round(rows.rows * (1 - spec.data.test_fraction))
        rows = replace(rows, rows=kept, tokens=rows.tokens * kept // max(rows.rows, 1))
    return base, place, rows


def _fit(
    spec: RunSpec, base: BaseModelEntry, place: Place, rows: Survey, settings: dict[str, Any]
) -> tuple[dict[str, Any], Training, list[str]]:
    """Save memory, where the person left the choice to us, until the estimate fits."""
    settings, saved = dict(settings), []
    training = Training(
        base=base,
        method=spec.method,
        device=place.device,
        lora_rank=settings.get("lora_rank", 0),
        batch=settings["per_device_train_batch_size"],
        length=min(settings["cutoff_len"], rows.longest or settings["cutoff_len"]),
        checkpointing=not settings["disable_gradient_checkpointing"],
    )
    room = _ROOM * place.memory_gib
    if training.memory_gib > room and "disable_gradient_checkpointing" not in spec.llamafactory:
        saved.append(
            f"gradient checkpointing: without it about {training.memory_gib:.1f} GiB of "
            f"{place.memory_gib:.1f} GiB memory would be needed"
        )
        training = replace(training, checkpointing=True)
        settings["disable_gradient_checkpointing"] = False
    while (
        training.memory_gib > room
        and training.batch > 1
        and "per_device_train_batch_size" not in spec.llamafactory
    ):
        training = replace(training, batch=training.batch // 2)
        settings["per_device_train_batch_size"] = training.batch
        settings["gradient_accumulation_steps"] *= 2
    if training.batch < 8 and settings["gradient_accumulation_steps"] > 1:
        saved.append(f"batches of {training.batch}, gradients added up, to fit the memory")
    return settings, training, saved


def _estimate(
    spec: RunSpec,
    place: Place,
    rows: Survey,
    settings: dict[str, Any],
    training: Training,
    context: Context,
) -> Estimate:
    steps = steps_of(rows.rows, settings)
    tokens = int(rows.tokens * settings["num_train_epochs"])
    seconds = training.seconds(tokens, steps, place.flops)
    disk = context.store.local_path("") or context.workdir
    return Estimate(
        rows=rows.rows,
        tokens=tokens,
        train_seconds=round(seconds, 1),
        memory_gib=round(training.memory_gib, 2),
        memory_available_gib=round(place.memory_gib, 2),
        disk_gib=round(training.disk_gib, 2),
        disk_available_gib=round(machine.free_disk_gib(disk), 2),
        cost=round(seconds / 3600 * place.price_per_hour, 2),
        flop=training.flop(tokens),
        basis=f"{training.flop(tokens):.2e} FLOP at {place.flops:.2e} FLOP/s; {steps} steps",
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
        yield "float32: CPU cores compute bfloat16 several times slower"
        yield f"{machine.cores()} threads: one for each core"
    else:
        yield "bfloat16: half the memory of float32 at full speed"
    given = [
        key for key in ("disable_gradient_checkpointing", "packing") if key in spec.llamafactory
    ]
    if given:
        yield f"{' and '.join(given)}: as llamafactory sets"
    if settings["disable_gradient_checkpointing"] and "disable_gradient_checkpointing" not in given:
        yield "no gradient checkpointing: it saves memory that is not short, for a third more work"
    if not settings["packing"] and "packing" not in given:
        yield "no packing: rows packed together see each other's text without flash attention"


def _summary(estimate: Estimate) -> Iterator[str]:
    yield f"about {estimate.train_seconds:.0f} s of training: {estimate.basis}"
    yield f"{estimate.rows} rows, about {estimate.tokens} tokens over all epochs"
    yield f"about {estimate.memory_gib} of {estimate.memory_available_gib} GiB memory"
    yield f"about {estimate.disk_gib} of {estimate.disk_available_gib} GiB disk"
    yield f"about {estimate.cost:.2f} EUR"
