"""Served tokens a second and time to first token, of running servers that take turns.

    secateur serve MODEL --port 8001 &  secateur serve OTHER --port 8002 &
    python -m bench.serving dense=localhost:8001/MODEL sparse=localhost:8002/OTHER --clients 1,16,64

Any OpenAI-compatible server will do: the part after the first slash is what it calls its model.
"""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer

from bench.records import append_record

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Target:
    """A running server."""

    name: str
    address: str
    model: str


@dataclass(frozen=True)
class Stream:
    """One answer as its client saw it."""

    first: float
    """Seconds to the first event with text."""
    num_events: int


def parse_target(text: str) -> Target:
    name, _, rest = text.partition("=")
    address, _, model = rest.partition("/")
    if not (name and address and model):
        raise typer.BadParameter(f"expected NAME=HOST:PORT/MODEL, got {text!r}")
    return Target(name, address, model)


def one_stream(target: Target, number: int, new_tokens: int) -> Stream:
    connection = http.client.HTTPConnection(target.address, timeout=600)
    prompt = f"Chapter {number}. It was a dark night, and the old house stood"
    body = {"model": target.model, "prompt": prompt, "max_tokens": new_tokens}
    more: dict[str, Any] = {"temperature": 0, "stream": True}
    started = perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps({**body, **more}), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{target.name}: {response.status} {response.read().decode()}")
    first, num_events = 0.0, 0
    for line in response:
        if line.startswith(b"data: {"):
            first = first or perf_counter() - started
            num_events += 1
    connection.close()
    return Stream(first, num_events)


def one_round(target: Target, clients: int, new_tokens: int) -> tuple[float, list[Stream]]:
    started = perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        streams = list(pool.map(lambda i: one_stream(target, i, new_tokens), range(clients)))
    return perf_counter() - started, streams


@app.command()
def main(
    servers: Annotated[list[str], typer.Argument(help="NAME=HOST:PORT/MODEL of each.")],
    clients: Annotated[str, typer.Option(help="At once, by commas.")] = "1,16,64",
    new_tokens: Annotated[int, typer.Option(help="Of every answer.")] = 64,
    rounds: Annotated[int, typer.Option(help="Timed, after one that is not.")] = 3,
    shared: Annotated[
        bool, typer.Option("--shared", help="The machine has other work: say so in the records.")
    ] = False,
) -> None:
    """One record for each server and number of clients."""
    targets = [parse_target(text) for text in servers]
    for count in map(int, clients.split(",")):
        taken: dict[str, list[tuple[float, list[Stream]]]] = {t.name: [] for t in targets}
        for number in range(rounds + 1):
            for target in targets:
                result = one_round(target, count, new_tokens)
                if number:
                    taken[target.name].append(result)
        for target in targets:
            seconds = [wall for wall, _ in taken[target.name]]
            firsts = [stream.first for _, streams in taken[target.name] for stream in streams]
            record = {
                "kind": "serving",
                "server": target.name,
                "clients": count,
                "new_tokens": new_tokens,
                "rounds": rounds,
                "shared_machine": shared,
                "seconds": median(seconds),
                "tokens_per_second": count * new_tokens / median(seconds),
                "time_to_first_token": median(firsts),
            }
            append_record("serving", record)
            typer.echo(
                f"{target.name:24} {count:3} clients {record['tokens_per_second']:9.1f} tokens/s, "
                f"first token {1e3 * median(firsts):8.1f} ms"
            )


if __name__ == "__main__":
    app()
