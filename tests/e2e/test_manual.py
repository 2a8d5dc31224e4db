# SPDX-License-Identifier: GPL-3.0-or-later
"""The program, --help, the manual, README and the completion know the same options and defaults."""

import re
import string
import subprocess

import pytest

from servers import ROOT
from test_options import PREFIX, USAGE, assert_refused, run

MANUAL = (ROOT / "fcgi/merchant-sessions.fcgi.8").read_text()
README = (ROOT / "README").read_text()
COMPLETION = ROOT / "conf/completion.bash"
LONG = re.compile(r"--[a-z][a-z-]+")
# Options of other programs that the manual's examples call, and README's text names.
OTHERS = {"--data-urlencode", "--once", "--layout", "--all"}


def options_of_program(program):
    """The answer to an abbreviation names the options that begin with it. No option takes this value."""
    found = set()
    for letter in string.ascii_lowercase:
        done = run(program, f"--{letter}=x")
        assert done.returncode == USAGE, done
        found |= set() if "unrecognized" in done.stderr else set(LONG.findall(done.stderr)) - {f"--{letter}"}
    return found


def letters_of_program(program):
    return {letter for letter in string.ascii_letters if "invalid option" not in run(program, f"-{letter}").stderr}


def options_of_help(program):
    """Name, and what stands about it: letter, argument, meaning and default."""
    text = run(program, "--help").stdout.partition("\n\n")[2].rpartition("\n\n")[0]
    parts = re.split(r"^(?=  (?:-\w, |    )--)", text, flags=re.MULTILINE)
    return {LONG.search(part)[0]: part for part in parts if part.strip()}


def options_of_manual():
    found = {}
    for part in MANUAL.split("\n.It ")[1:]:
        head, _, body = part.partition("\n")
        if name := re.search(r"Fl Fl (\S+)", head):
            found[f"--{name[1]}"] = head + "\n" + re.split(r"^\.El", body, flags=re.MULTILINE)[0]
    return found


def letter_of(part, pattern):
    found = re.match(pattern, part)
    return found and found[1]


def test_the_same_options(program):
    found = options_of_program(program)
    assert {"--database", "--workers", "--check", "--help", "--version"} < found
    assert set(options_of_help(program)) == found
    assert set(options_of_manual()) == found
    synopsis = MANUAL.partition(".Sh SYNOPSIS")[2].partition(".Sh DESCRIPTION")[0]
    for name, part in options_of_manual().items():
        letter = letter_of(part, r"Fl (\w) ,")
        assert re.search(rf"Fl Fl {name[2:]}\b" + (rf"|(?:Fl|\|) {letter}\b" if letter else ""), synopsis), name


def test_the_same_letters_and_arguments(program):
    manual = options_of_manual()
    letters = set()
    for name, part in options_of_help(program).items():
        letter = letter_of(part, r"  -(\w),")
        assert letter_of(manual[name], r"Fl (\w) ,") == letter, name
        assert bool(re.search(name + " [A-Z]", part)) == (" Ar " in manual[name].splitlines()[0]), name
        letters |= {letter} if letter else set()
    assert letters_of_program(program) == letters


def test_the_same_defaults(program):
    """tests/unit/test_options.c compares those of help with what the program does."""
    manual = options_of_manual()
    numbers = {name: found[1] for name, part in options_of_help(program).items() if (found := re.search(r"\((\d+)\)", part))}
    assert len(numbers) >= 5
    for name, number in numbers.items():
        assert re.search(rf"default\D*\b{number}\b", manual[name]), (name, number)


def test_variables_of_the_manual(program):
    """Each option has one, but for those that only print. The program refuses this value of each, and names it."""
    for name, part in options_of_manual().items():
        variable = PREFIX + name[2:].upper().replace("-", "_")
        assert re.findall(r"^\.Pq Ev (\S+)$", part, flags=re.MULTILINE) == (
            [] if name in ("--version", "--help") else [variable])
        if name not in ("--version", "--help"):
            assert_refused(run(program, env={variable: "x"}), variable)


def test_what_the_manual_and_readme_name_is_there(program):
    found = options_of_program(program) | OTHERS
    named = {f"--{name}" for name in re.findall(r"Fl Fl ([a-z][a-z-]+)", MANUAL)}
    assert named | set(LONG.findall(MANUAL)) <= found
    # Options of other programs stand in what is indented or has backticks around it.
    text = "\n".join(line for line in README.splitlines() if not line.startswith("    "))
    assert set(LONG.findall(re.sub("`[^`]*`", "", text))) <= found


def test_defaults_of_readme(program):
    """Where a row of a table begins with an option and has a number in parentheses, that is its default."""
    options = options_of_help(program)
    for line in README.splitlines():
        if row := re.match(r"\| *`?(--[a-z-]+).*\((\d+)\)", line):
            assert f"({row[2]})" in options[row[1]], line


@pytest.mark.parametrize("words,expected", [
    (["--max"], {"--max-wait", "--max-waiting"}), (["--ch"], {"--check"}), (["-v", "--vers"], {"--version"}),
    (["-d", "[", "--ch"], {"--check"}), (["--max-wait", ""], set()), (["-w", ""], set()), (["--check", "--he"], {"--help"}),
    (["-l", f"{ROOT}/sql/role"], {f"{ROOT}/sql/role.sql"}), (["--listen", f"{ROOT}/sql/ro"], {f"{ROOT}/sql/role.sql"})])
def test_completion(program, words, expected):
    assert complete(program, words) == expected


def test_completion_of_all_options(program):
    assert complete(program, ["--"]) == options_of_program(program)


def complete(program, words):
    """What bash offers for the last word."""
    script = """source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _merchant_sessions "$1" "${@: -1}"
                printf '%s\\n' "${COMPREPLY[@]}" """
    done = subprocess.run(["bash", "-c", script, "bash", COMPLETION, program, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


# The log, and README's table of its lines

def log_formats():
    """The format of each line of the log with the level warning or error."""
    formats = set()
    for source in sorted((ROOT / "fcgi").glob("*.c")):
        text = re.sub(r'"\s+"', "", source.read_text())
        formats |= set(re.findall(r'log_(?:error|warning)\(\s*"((?:[^"\\]|\\.)*)"', text))
    return formats


def words(line):
    """The fixed parts of a format, or of a row of the table."""
    parts = re.split(r'[…"()]|%[-.*\d]*[a-z]+', line.replace("\\", ""))
    return [part.strip(" ,:;") for part in parts if len(part.strip(" ,:;")) > 3]


def rows_of_log_table():
    table = README.partition("| line | meaning |")[2].partition("\n\n")[0]
    return [row.split("|")[1].strip() for row in table.splitlines()[2:]]


def test_each_row_of_the_log_is_in_the_program():
    sources = "\n".join(re.sub(r'"\s+"', "", path.read_text()) for path in (ROOT / "fcgi").glob("*.c"))
    rows = rows_of_log_table()
    assert len(rows) > 10
    for row in rows:
        for part in words(re.sub(r"^database: ", "", row)):
            for piece in part.split(", "):
                assert piece in sources, (row, piece)


def test_each_warning_is_in_readme():
    named = {word for row in rows_of_log_table() for part in words(row) for word in part.split(", ") if len(word) > 10}
    missing = [line for line in log_formats() if words(line) and not any(word in line.replace("\\", "") for word in named)]
    assert not missing
