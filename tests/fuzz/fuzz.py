# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the fuzz targets: see tests/fuzz/run."""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
C_ARGS = "-fsanitize=fuzzer-no-link -fprofile-instr-generate -fcoverage-mapping"
# A report of any sanitizer ends the program, and libFuzzer keeps the input.
ENVIRONMENT = {**os.environ, "CC": "clang", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
               "LLVM_PROFILE_FILE": os.devnull}


class Target:
    def __init__(self, name, build, findings):
        self.name, self.findings = name, findings
        self.program = build / "tests/fuzz" / f"fuzz_{name}"
        self.log = build / f"{name}.log"
        self.profile = build / f"{name}.profraw"
        self.kept = build / "corpus" / name
        self.kept.mkdir(parents=True)
        self.corpora = [self.kept, HERE / "corpus" / name]

    def run(self, seconds):
        """Runs the target for that many seconds; True if it found nothing."""
        # What the program itself logs is of no interest, and may be much.
        ended = self._start(["-close_fd_mask=2", "-print_final_stats=1", "-timeout=10", f"-max_total_time={seconds}",
                             f"-artifact_prefix={self.findings}/{self.name}-", *self.corpora], "/dev/null", self.log)
        found = sorted(self.findings.glob(f"{self.name}-*"))
        print(f"{self.name}: {self._executions()} executions, {self._coverage()} of fcgi/{self.name}.c covered, "
              f"{', '.join(map(str, found)) or 'nothing'} found", flush=True)
        if ended != 0:
            self._show(found)
        return ended == 0

    def _start(self, arguments, profile, log):
        with open(log, "w") as output:
            # An input that ends a run other than run() would be written to the working directory.
            return subprocess.run([self.program, *arguments], stdout=output, stderr=output, check=False, cwd=self.log.parent,
                                  env={**ENVIRONMENT, "LLVM_PROFILE_FILE": str(profile)}).returncode

    def _executions(self):
        found = re.search(r"number_of_executed_units: (\d+)", self.log.read_text(errors="replace"))
        return f"{int(found[1]):,}" if found else "?"

    def _coverage(self):
        """Of the inputs that libFuzzer has kept, as a program that has crashed leaves no profile."""
        self._start(["-close_fd_mask=2", "-runs=0", *self.corpora], self.profile, os.devnull)
        data = self.profile.with_suffix(".profdata")
        subprocess.run(["llvm-profdata", "merge", "-o", data, self.profile], check=True)
        report = subprocess.run(["llvm-cov", "export", "-summary-only", f"-instr-profile={data}", self.program],
                                check=True, capture_output=True, text=True).stdout
        lines = next(file["summary"]["lines"] for file in json.loads(report)["data"][0]["files"]
                     if file["filename"].endswith(f"/fcgi/{self.name}.c"))
        return f"{lines['percent']:.1f} % ({lines['covered']} of {lines['count']} lines)"

    def _show(self, found):
        """Runs the input again, to show what is said of it."""
        if found:
            self._start(found[:1], "/dev/null", self.log)
        print("\n".join(self.log.read_text(errors="replace").splitlines()[-60:]), flush=True)


def meson(*arguments):
    done = subprocess.run(["meson", *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)


def build(directory, names):
    meson("setup", "-Db_sanitize=address,undefined", "-Db_lundef=false", f"-Dc_args={C_ARGS}",
          "-Dc_link_args=-fprofile-instr-generate", directory, SOURCE)
    meson("compile", "-C", directory, *(f"fuzz_{name}" for name in names))


def arguments():
    names = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c"))
    parser = argparse.ArgumentParser(prog="tests/fuzz/run", description="Runs the fuzz targets.")
    parser.add_argument("minutes", type=float, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(names)}; all, if none is named")
    chosen = parser.parse_args()
    unknown = set(chosen.targets) - set(names)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    return chosen.minutes, chosen.targets or names


def main():
    minutes, names = arguments()
    with tempfile.TemporaryDirectory(prefix="merchant-sessions-fuzz-") as temporary:
        directory = pathlib.Path(temporary)
        build(directory, names)
        findings = pathlib.Path(tempfile.mkdtemp(prefix="merchant-sessions-findings-"))
        targets = [Target(name, directory, findings) for name in names]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
            clean = all(list(executor.map(lambda target: target.run(max(1, round(minutes * 60))), targets)))
    if not any(findings.iterdir()):
        findings.rmdir()
    sys.exit(0 if clean else 1)


main()
