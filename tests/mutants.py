"""How many changes of one place in the code the tests notice: `make mutants`.

    python tests/mutants.py                                   80 mutants of the rooms that carry the method
    python tests/mutants.py --most 400 --seed 1               more of them, others
    python tests/mutants.py hpe_core.geometry.bins --tests tests/geometry --most 0    all of one module

mutmut makes the mutants, in the folder `mutants/`; `mutmut show NAME` prints one. Each is tried with the tests that
reach its function, without those that start Ray. What a test module computes while it is imported it computes before
the mutant is switched on: whatever a law is about belongs into the test.
"""

import argparse
import random
from pathlib import Path

from mutmut.__main__ import _run, copy_also_copy_files, copy_src_dir, create_mutants, setup_source_paths
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

CHILDREN = 2
KILLED = ("killed", "timeout", "segfault")


def mutants() -> dict[str, int | None]:
    """Name of each mutant -> how its tests ended."""
    found: dict[str, int | None] = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        found |= data.exit_code_by_key
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=[""], help="how the names of the mutants begin")
    parser.add_argument("--most", type=int, default=80, help="how many are drawn (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="+", help="files or folders of tests, instead of all rooms'")
    args = parser.parse_args()
    if args.tests:
        config().pytest_add_cli_args_test_selection = args.tests
    Path("mutants").mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    create_mutants(CHILDREN)
    names = sorted(name for name in mutants() if name.startswith(tuple(args.modules)))
    drawn = random.Random(args.seed).sample(names, min(args.most or len(names), len(names)))
    _run(drawn, CHILDREN)
    ended = {name: status_by_exit_code[mutants()[name]] for name in drawn}
    for name, status in sorted(ended.items()):
        if status not in KILLED:
            print(f"{status:<12} {name}")
    killed, unseen = (sum(status in kind for status in ended.values()) for kind in (KILLED, ("no tests",)))
    share = 100 * killed / max(1, len(drawn) - unseen)
    print(f"{killed} of {len(drawn)} mutants killed: {share:.0f} % of those that tests without Ray reach", end="")
    print(f", {unseen} are not reached (there are {len(names)} mutants)")


if __name__ == "__main__":
    main()
