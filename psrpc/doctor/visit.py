"""The doctor's visit: of one host, or of all that a launch has."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial

import click

from psrpc import environment
from psrpc.doctor import between, host
from psrpc.doctor.findings import Finding, Level, bad, examined, exit_code, shown
from psrpc.environment import Place
from psrpc.errors import PsrpcError
from psrpc.planes.agent import Agent
from psrpc.rendezvous import Rendezvous
from psrpc.secret import Secret

_TIMEOUT_S = 60.0
_KEY = "doctor/alone"


def visit(*, as_json: bool) -> int:
    """Look at this host, or with all processes of a launch at all of theirs, and say what is found.

    Blocks; rank 0 says it. Returns the exit code, which all processes have alike.
    """
    place = environment.place()
    if place is None:
        one_host = environment.interface() in (None, "lo")
        agent = Agent("doctor", 0, threads=1, one_host=one_host, secret=Secret.random())
        with closing(agent):
            findings = alone(agent, one_host=one_host)
        say(findings, as_json=as_json)
        return exit_code(findings)
    try:
        with Rendezvous(place, _TIMEOUT_S) as rendezvous:
            return _together(place, rendezvous, as_json=as_json)
    except PsrpcError as error:
        say([_not_met(place, error)], as_json=as_json)
        return 1


def alone(agent: Agent, *, one_host: bool) -> list[Finding]:
    """What there is to say of this host, which starts `agent`."""
    looks: list[Callable[[], Iterable[Finding]]] = [
        host.look_at_torch,
        partial(host.look_at_rpc, agent, one_host=one_host),
        host.look_at_secret,
        host.look_at_ports,
        host.look_at_names,
        host.look_at_limits,
        host.look_at_gpus,
        host.look_at_slurm,
    ]
    return examined(looks)


def _together(place: Place, rendezvous: Rendezvous, *, as_json: bool) -> int:
    name, secret = socket.gethostname(), rendezvous.secret
    agent = Agent(
        f"doctor{place.rank}", place.rank, threads=1, one_host=place.one_host, secret=secret
    )
    with closing(agent):
        mine = [replace(each, host=name) for each in alone(agent, one_host=place.one_host)]
        listens = agent.host
    lines = json.dumps([{**asdict(each), "level": each.level.value} for each in mine])
    rendezvous.publish(f"{_KEY}/{place.rank}", lines)
    found = between.look_between(place, listens, rendezvous)
    if place.rank:
        (code,) = rendezvous.read([f"{_KEY}/code"])
        return int(code)
    texts = rendezvous.read([f"{_KEY}/{rank}" for rank in range(place.world_size)])
    heard = [
        Finding(**{**each, "level": Level(each["level"])})
        for text in texts
        for each in json.loads(text)
    ]
    # Processes of one host find the same.
    findings = [*dict.fromkeys(heard), *found]
    say(findings, as_json=as_json)
    rendezvous.publish(f"{_KEY}/code", str(exit_code(findings)))
    return exit_code(findings)


def _not_met(place: Place, error: PsrpcError) -> Finding:
    return replace(
        bad(
            "meeting",
            f"rank {place.rank} has not met the others: {error}",
            f"all hosts must reach {place.address}:{place.port}, and have one secret",
        ),
        host=socket.gethostname(),
    )


def say(findings: list[Finding], *, as_json: bool) -> None:
    """Show findings to the user."""
    if as_json:
        said = [{**asdict(each), "level": each.level.value} for each in findings]
        click.echo(json.dumps(said))
    else:
        click.echo(shown(findings))
