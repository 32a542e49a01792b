"""Ask a model steadily from inside the cluster; runs in the platform image.

python load.py URL MODEL RATE: RATE questions a second until SIGTERM, every second one streamed; a
JSON line for each with start, end (seconds since 1970), status, text or the error.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any

import httpx

QUESTION = {"role": "user", "content": "What is the exit code of a preempted step?"}


async def ask(client: httpx.AsyncClient, url: str, model: str, number: int) -> dict[str, Any]:
    """One question and what came back."""
    stream = number % 2 == 1
    body = {"model": model, "messages": [QUESTION], "max_tokens": 8, "temperature": 0}
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


async def main(url: str, model: str, rate: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # A connection for each question: an idle one may be closed by a pod that ends, as any proxy
    # that keeps connections knows.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:

        async def one(number: int) -> None:
            print(json.dumps(await ask(client, url, model, number)), flush=True)

        begun, asked = time.monotonic(), []
        while not stop.is_set():
            asked.append(asyncio.create_task(one(len(asked))))
            await asyncio.sleep(max(0.0, begun + len(asked) / rate - time.monotonic()))
        await asyncio.gather(*asked)
    print(json.dumps({"asked": len(asked)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
