"""Rows of measurements as JSON lines: what was measured, on which data, with which seeds, machine and versions.

Every script of this folder writes its rows with `Log`, by default to `results/NAME_OF_THE_SCRIPT.jsonl`. A row holds
one number:

script, arguments   the script and its command line; of paths the last part, without --out
data_set, method    what was measured
seeds               a list; of a measurement without chance an empty one
conditions          all else that tells this number from others: threads, numbers of cells and genes, settings
measure, value, unit
date, load          UTC, and the machine's load average over one minute
machine             processor, cores, memory, operating system, GPU; threads that were asked for
versions            python, numpy, torch, scanpy, numba, sccvae, the peers; `sccvae_git` is the commit, if there is one

Rows that were copied from the text of version 0.1.0 have `source`, and null for what that text does not say. `digits`
is the number of decimals there; `error` a standard error, `low` and `high` a range. Where it does not name the seeds,
`n_seeds` is their number and `seeds_as_stated` what it says.
"""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PACKAGES = ("numpy", "torch", "scanpy", "numba", "sccvae")
VALUE = ("measure", "value", "unit")  # what tells rows of one measurement apart
COPIED = ("digits", "error", "low", "high", "n_seeds", "seeds_as_stated")  # what copied rows say of a value besides


def default_out(script: str) -> Path:
    """The file that a script appends its rows to unless told otherwise."""
    return RESULTS / f"{Path(script).stem}.jsonl"


class Log:
    """Appends the rows of one run of a script to a file.

    Parameters
    ----------
    script
        `__file__` of the script.
    out
        The file. Its folder is made if there is none.
    units
        The unit of each measure: a measure without one is an error. `None` for text and curves, "1" for fractions,
        correlations and scores.
    threads
        Number of threads that the measurement was given; None for that of the variable OMP_NUM_THREADS, if it is set.
    peers
        Packages beside sccvae whose versions matter.
    gpu
        Whether the measurement may use one.
    """

    def __init__(
        self,
        script: str,
        out: Path | str,
        units: Mapping[str, str | None],
        *,
        threads: int | None = None,
        peers: Iterable[str] = (),
        gpu: bool = False,
    ):
        self.out, self.units = Path(out), units
        self._run = {"script": f"benchmarks/{Path(script).name}", "arguments": arguments()}
        if threads is None and os.environ.get("OMP_NUM_THREADS", "").isdigit():
            threads = int(os.environ["OMP_NUM_THREADS"])
        self._where = {"machine": machine(gpu) | {"threads": threads}, "versions": versions(peers)}

    def add(self, found: Mapping, *, data_set: str, method: str, seeds: Iterable[int] = (), **conditions) -> None:
        """Append one row for each measure of `found`, all with the same conditions."""
        what = {"data_set": data_set, "method": method, "seeds": list(seeds), "conditions": conditions}
        now = {"date": datetime.now(UTC).isoformat("T", "seconds"), "load": round(os.getloadavg()[0], 2)}
        lines = []
        for measure, value in found.items():
            number = {"measure": measure, "value": finite(value), "unit": self.units[measure]}
            lines.append(json.dumps(self._run | what | number | now | self._where) + "\n")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a") as sink:
            sink.writelines(lines)


def read(path: Path | str) -> list[dict]:
    """The rows of a file; none if there is no file. A line that was cut short is left out, and said so."""
    found = []
    for line in Path(path).read_text().splitlines() if Path(path).is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"left out, as it is no JSON: {line[:60]}", file=sys.stderr)
    return found


def gather(rows: Iterable[dict]) -> list[dict]:
    """Each measurement as one dictionary: `set`, method, seed, conditions, date, processor, and values by measure."""
    found: dict[str, dict] = {}
    for row in rows:
        rest = {name: value for name, value in row.items() if name not in (*VALUE, *COPIED)}
        what = {"set": row["data_set"], "method": row["method"], **row["conditions"], "date": row["date"]}
        what |= {"processor": row["machine"]["processor"]}
        what |= {"seed": row["seeds"][0]} if row["seeds"] and len(row["seeds"]) == 1 else {}
        found.setdefault(json.dumps(rest, sort_keys=True), what)[row["measure"]] = row["value"]
    return list(found.values())


def finite(value):
    """The value as JSON knows it: NaN and infinities are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def arguments() -> list[str]:
    """The command line of this process without --out and --work; of paths the last part."""
    found, words = [], iter(sys.argv[1:])
    for word in words:
        if word == "--out":
            next(words, None)
        elif word != "--work" and not word.startswith("--out="):
            found.append(Path(word).name if os.sep in word else word)
    return found


def machine(gpu: bool = False) -> dict:
    """Processor, logical cores, memory and system; the GPU if one may be used."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((x.split(":")[1].strip() for x in info if x.startswith("model name")), platform.processor())
    gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    found = {"processor": processor, "cores": os.cpu_count(), "memory_gib": gib, "system": platform.platform()}
    return found | {"gpu": gpu_name() if gpu else None}


def gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def versions(peers: Iterable[str] = ()) -> dict:
    """Versions of Python, of the libraries and of sccvae; of a peer that is not installed null."""
    found = {"python": platform.python_version()} | {name: installed(name) for name in (*PACKAGES, *peers)}
    if found["sccvae"] is None:  # a source folder on the path has no metadata
        import sccvae

        found["sccvae"] = sccvae.__version__
    return found | {"sccvae_git": git_version()}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_version() -> str | None:
    """The commit of the repository that holds the package, with -dirty if files of the package were changed since."""
    import sccvae

    if sccvae.__file__ is None:
        return None
    git = ["git", "-C", str(Path(sccvae.__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, check=False)
    except OSError:
        return None
    return head.stdout.strip() + "-dirty" * bool(same.returncode) if head.returncode == 0 else None
