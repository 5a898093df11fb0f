"""What the doctor looks at on one host. Facts are read by `look_...`; the rest judges them."""

from __future__ import annotations

import ipaddress
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from psrpc import environment
from psrpc.doctor.findings import Finding, bad, ok, warning
from psrpc.environment import INTERFACE
from psrpc.errors import AddressError, ConfigError, TorchInterfaceError
from psrpc.planes import filters
from psrpc.planes.agent import Agent, check_torch
from psrpc.secret import user_key

LEAST_DESCRIPTORS = 1024
_LEAST_SHM_BYTES = 256 << 20
_LEAST_PORTS = 5_000
_LONGEST_LOOKUP_S = 1.0
_MEGA = 1 << 20


def look_at_torch() -> Iterable[Finding]:
    """Whether this torch has what psrpc needs of it."""
    try:
        check_torch()
    except TorchInterfaceError as error:
        yield bad("torch", str(error), "pip install a torch from 2.11 to 2.15")
    else:
        yield ok("torch", f"{torch.__version__}, with torch.distributed.rpc as psrpc knows it")


def look_at_rpc(agent: Agent, *, one_host: bool) -> Iterable[Finding]:
    """Starts torch RPC, as a job does; says where it listens, and whether the kernel guards it."""
    try:
        agent.start()
    except (AddressError, TorchInterfaceError) as error:
        yield bad("rpc", str(error), f"{INTERFACE}=eth0, or another one (`ip addr` lists them)")
        return
    yield address(agent.host, socket.gethostname(), one_host=one_host)
    yield guard()


def address(listens: str, name: str, *, one_host: bool) -> Finding:
    """Judges the address that other processes of a job are told."""
    if one_host:
        return ok("address", f"processes of this host find each other at {listens}")
    if ipaddress.ip_address(listens.partition("%")[0]).is_loopback:
        return bad(
            "address",
            f"other hosts would be told {listens}, this host's own loopback address, which "
            f"{name} resolves to",
            f"name the network interface that they reach ({INTERFACE}=eth0; `ip addr` lists them)",
        )
    return ok("address", f"other hosts are told {listens}: they must reach it, at any port")


def guard() -> Finding:
    """Whether the kernel takes an address filter for a socket that listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        try:
            filters.attach(probe, ())
        except OSError as error:
            return warning(
                "filter",
                f"the kernel takes no address filter ({error.strerror}): whoever reaches torch "
                "RPC's port can run code in a job",
                "run jobs in a network of their own, or behind a firewall",
            )
    return ok("filter", "the kernel keeps strangers from torch RPC's ports (SO_ATTACH_FILTER)")


def look_at_secret() -> Iterable[Finding]:
    """Whether jobs can have a secret."""
    try:
        user_key()
    except ConfigError as error:
        yield bad("secret", str(error), "see there")
        return
    text, path = environment.secret()
    origin = "the environment" if text else path or "this user's own (~/.psrpc/secret)"
    yield ok("secret", f"{origin}; all hosts of a job must have the same")


def look_at_ports() -> Iterable[Finding]:
    """Whether there are enough ports, and they can be listened at."""
    with suppress(OSError):
        low, high = map(
            int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
        )
        yield ports(low, high)


def ports(low: int, high: int) -> Finding:
    """Judges the range of ports from which the kernel takes."""
    if high - low + 1 < _LEAST_PORTS:
        return warning(
            "ports",
            f"the kernel gives out {high - low + 1} ports only ({low} to {high})",
            "sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
        )
    return ok("ports", f"jobs listen at ports from {low} to {high}, and at the launcher's")


def look_at_names() -> Iterable[Finding]:
    """How long it takes to look up the name of an address."""
    began_s = time.monotonic()
    with suppress(OSError):
        # As torch's store asks for it, and as no /etc/hosts has it.
        socket.getnameinfo(("::ffff:127.0.0.1", 1, 0, 0), 0)
    yield names(time.monotonic() - began_s)


def names(took_s: float) -> Finding:
    """Judges how long that took."""
    if took_s < _LONGEST_LOOKUP_S:
        return ok("names", "the name of an address is looked up at once")
    return warning(
        "names",
        f"the look-up of an address took {took_s:.0f} s, and torch's store makes one whenever a "
        "process connects: jobs begin slowly, and processes that come back",
        "repair the name servers in /etc/resolv.conf, or add there: options timeout:1 attempts:1",
    )


def look_at_limits() -> Iterable[Finding]:
    """Descriptors, and memory that processes share."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield descriptors(soft, hard)
    try:
        os.close(os.memfd_create("psrpc-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        yield warning(
            "shared memory",
            f"there is none without a name ({error.strerror})",
            "--plane rpc works without it; in a container, allow memfd_create",
        )
    else:
        yield ok("shared memory", "workers share theirs with servers of their host")
    with suppress(OSError):
        yield shm(shutil.disk_usage("/dev/shm").free)


def descriptors(soft: int, hard: int) -> Finding:
    """Judges the limit of open files: a server needs some for every worker."""
    if soft < LEAST_DESCRIPTORS:
        return warning(
            "descriptors",
            f"a process may have {soft} open: a server needs about 8 for each worker",
            f"ulimit -n {min(hard, 65536) if hard > 0 else 65536} before the job starts",
        )
    return ok("descriptors", f"{soft} for each process: enough for {soft // 8} workers")


def shm(free_bytes: int) -> Finding:
    """Judges /dev/shm, which psrpc does not need, and the workers of a DataLoader do."""
    free = f"{free_bytes // _MEGA} MB of /dev/shm are free"
    if free_bytes < _LEAST_SHM_BYTES:
        return warning(
            "/dev/shm",
            f"{free}: a DataLoader with workers may run out of it",
            "in a container: --shm-size=2g, or --ipc=host; or num_workers=0",
        )
    return ok("/dev/shm", free)


def look_at_gpus() -> Iterable[Finding]:
    """GPUs, and whether they can talk to each other."""
    if not torch.cuda.is_available():
        yield ok("gpu", "torch finds none: workers compute on the CPU")
        return
    names = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
    yield ok("gpu", f"{len(names)}: {', '.join(sorted(set(names)))}")
    if torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield ok("nccl", version)
    else:
        yield warning(
            "nccl", "this torch has none", "--backend gloo, or a torch built with CUDA and NCCL"
        )


def look_at_slurm() -> Iterable[Finding]:
    """Whether this is SLURM, and what it says of this job."""
    job = environment.slurm()
    found = shutil.which("sbatch")
    if job:
        said = ", ".join(f"{n.removeprefix('SLURM_').lower()} {job[n]}" for n in sorted(job))
        yield ok("slurm", f"this is a job of it: {said}")
    elif found:
        yield ok("slurm", f"{found} submits jobs from here")
    else:
        yield ok("slurm", "there is none here")
