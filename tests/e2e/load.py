"""Ask a model steadily from inside the cluster; runs in the platform image.

python load.py URL MODEL RATE ALWAYS: RATE questions a second until SIGTERM, every second one
streamed, and ALWAYS callers who ask for a long answer as soon as they have the last; a JSON line
for each question with start, end (seconds since 1970), status, text or the error.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any

import httpx

LONG = 120
"""Tokens of a long answer, the model's end of text or not."""
QUESTION = {"role": "user", "content": "What is the exit code of a preempted step?"}


async def ask(
    client: httpx.AsyncClient, url: str, model: str, number: int, **more: Any
) -> dict[str, Any]:
    """One question and what came back."""
    stream = number % 2 == 1
    body = {"model": model, "messages": [QUESTION], "max_tokens": 8, "temperature": 0} | more
    start, text, ended = time.time(), "", False
    try:
        if stream:
            async with client.stream("POST", url, json=body | {"stream": True}) as answer:
                status = answer.status_code
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        ended = True
                    elif line.startswith("data: "):
                        for choice in json.loads(line[6:])["choices"]:
                            text += choice["delta"].get("content") or ""
        else:
            answer = await client.post(url, json=body)
            status, ended = answer.status_code, True
            text = answer.json()["choices"][0]["message"]["content"] if status == 200 else ""
    except (httpx.HTTPError, KeyError, ValueError) as error:
        return {"start": start, "end": time.time(), "status": 0, "error": repr(error)}
    return {
        "start": start,
        "end": time.time(),
        "status": status,
        "text": text,
        "stream": stream,
        "ended": ended,
    }


async def main(url: str, model: str, rate: float, always: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # A connection for each question: an idle one may be closed by a pod that ends, as any proxy
    # that keeps connections knows.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:
        count = 0

        async def one(number: int, **more: Any) -> None:
            nonlocal count
            count += 1
            print(json.dumps(await ask(client, url, model, number, **more)), flush=True)

        async def one_after_another(number: int) -> None:
            while not stop.is_set():
                await one(number, max_tokens=LONG, ignore_eos=True)

        tasks = [asyncio.create_task(one_after_another(number)) for number in range(always)]
        begun, asked = time.monotonic(), 0
        while rate and not stop.is_set():
            tasks.append(asyncio.create_task(one(asked)))
            asked += 1
            await asyncio.sleep(max(0.0, begun + asked / rate - time.monotonic()))
        await asyncio.gather(*tasks)
    print(json.dumps({"asked": count}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))
