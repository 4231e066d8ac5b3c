"""YAML files and key=value overrides -> PipelineSpec, and the command line that every stage shares.

OmegaConf merges and interpolates; Hydra is left out because its job folders and its sweeper would do again,
differently, what the stage store and Ray Tune do. Everything is checked here, before Ray starts.
"""

import dataclasses
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe_core.datasets.files import printable
from hpe_core.datasets.protocols import protocol_named
from hpe_core.datasets.registry import check_datasets
from hpe_core.errors import SpecError, UserError, check, nearest, say
from hpe_core.shipped import shipped_folder
from hpe_core.spec.data import FETCH, DatasetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.disk import disk_is_full
from hpe_core.system.packages import missing
from hpe_core.system.remote import RemoteError
from workflows.engine.commandline import EXIT_STOPPED, CommandParser, literal, typed_overrides
from workflows.engine.stage import StageFailed
from workflows.storage.lock import StoreHeld
from workflows.tracking.registry import SCHEME, fetched_network

REPO = Path(__file__).resolve().parents[2]
_PACKED = Path(__file__).resolve().parents[1] / "conf"  # there in an installed package (setup.py)
CONF = _PACKED if _PACKED.is_dir() else REPO / "conf"
DEFAULT_CONFIG = "conf/demo.yaml"

CLOSING_S = 20.0  # how long Ray may take to stop
AGAIN_S = 0.1  # after which a stop that was lost is sent once more
# What the name of a file that somebody gave can be to blame for.
OF_A_NAME = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EROFS)
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_STORE_HELD = 1, 2, 3
EXIT_CODES = {
    0: "done",
    EXIT_FAILED: "a stage failed",
    EXIT_BAD_INPUT: "bad configuration or input",
    EXIT_STORE_HELD: "the store is in use",
}
KEYS = "keys are those of hpe_core/spec, e.g. student.optim.lr=0.001 search.trials=8 store=/data/runs"


def load(files: Sequence[str], overrides: Sequence[str] = ()) -> PipelineSpec:
    """Merge YAML files from left to right, then key=value overrides. Raises SpecError with one sentence.

    A file that says `include: [other.yaml]` (beside itself) stands on those files.
    """
    from omegaconf import OmegaConf

    merged = OmegaConf.create({})
    seen: list[Path] = []
    for name in files:
        merged = OmegaConf.unsafe_merge(merged, *_layers(find_config(name), seen))  # nobody else has them: no copies
    _check_names(OmegaConf.to_container(merged), overrides)
    spec = build(PipelineSpec, _tidied(typed_overrides(PipelineSpec, overrides, merged)))
    check(bool(spec.data.test), "data.test names no dataset")  # hours later, evaluate would have nothing to do
    if spec.evaluate.protocol:
        protocol_named(spec.evaluate.protocol)
    spec = resolve_paths(spec)
    check_datasets(spec.data)
    return spec


def _layers(path: Path, seen: list[Path]) -> list[Any]:
    """What a file includes, then the file itself; a file that was included before is not laid over what came since."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(os.path.realpath(path))
    seen.append(path)
    try:
        layer = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(layer):
        raise SpecError(f"{path} must hold a mapping of keys")
    included = layer.pop("include", [])
    names = [included] if isinstance(included, str) else included
    check(OmegaConf.is_list(names) or isinstance(names, list), f"{path}: include names files, as [one.yaml, two.yaml]")
    below = []
    for name in names:
        other = Path(os.path.realpath(path.parent / str(name)))
        check(other.is_file(), f"{path} includes {name}, which is not there")
        below += [] if other in seen else _layers(other, seen)
    return [*below, layer]


def find_config(name: str) -> Path:
    """A path, or one of the project's own files, as `demo` or `conf/scale/ehpnet.yaml`. Raises SpecError."""
    short = name.removeprefix("conf/").removesuffix(".yaml")
    for candidate in (Path(name), CONF / f"{short}.yaml"):
        if candidate.is_file():
            return candidate
    known = [path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml")]
    raise SpecError(f"there is no configuration file {name}{nearest(short, known)}")


def _check_names(tree: Any, overrides: Sequence[str]) -> None:
    """Raises SpecError for an override of a dataset or teacher that the files do not name."""
    named = {"data.datasets": (tree.get("data") or {}).get("datasets"), "teachers": tree.get("teachers")}
    for key in (word.partition("=")[0] for word in overrides):
        for table, known in named.items():
            name = key.removeprefix(f"{table}.").split(".")[0]
            if key.startswith(f"{table}.") and name not in (known or {}):
                close = nearest(name, list(known or {}))
                raise SpecError(f"{key}: {table} has no entry '{name}'{close} (new ones go into a YAML file)")


def _tidied(tree: dict[str, Any]) -> dict[str, Any]:
    """Of mappings whose names the YAML file chooses, entries that were set to null are dropped; a nested search space
    becomes dotted keys."""
    for place, name in ((tree.get("data"), "datasets"), (tree, "teachers"), (tree.get("search"), "space")):
        if isinstance(place, dict) and isinstance(place.get(name), dict):
            named = _dotted(place[name]) if name == "space" else place[name]
            place[name] = {key: value for key, value in named.items() if value is not None}
    return tree


def _dotted(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in space.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            flat[key] = value
        elif {"choice", "low", "high"} & set(value):
            flat[key] = {**(flat.get(key) or {}), **value}
        else:
            flat |= _dotted(value, f"{key}.")
    return flat


def resolve_paths(spec: PipelineSpec) -> PipelineSpec:
    """Every path absolute: Ray moves its workers into folders of its own. A network to start from becomes its folder,
    which is fetched from the registry if it is `models:/...`."""
    here = Path.cwd()
    store = absolute(spec.store, lasting_folder(here))

    def found(dataset: DatasetSpec) -> DatasetSpec:
        detector = dataset.detector
        if detector is not None and detector.model != FETCH:
            detector = dataclasses.replace(detector, model=absolute(detector.model, here))
        root, boxes = absolute(dataset.root, here), absolute(dataset.boxes, here)
        return dataclasses.replace(dataset, root=root, boxes=boxes, detector=detector)

    def trained(train: Any, key: str) -> Any:
        weights = train.net.pretrained
        path = weights if weights in ("none", "hub") else absolute(weights, here)
        net = dataclasses.replace(train.net, pretrained=path)
        return dataclasses.replace(train, net=net, start=begun(train.start, key))

    def begun(start: str, key: str) -> str:
        try:
            if start.startswith(SCHEME):
                there = dataclasses.replace(spec, store=store)
                return str(fetched_network(start, there.tracking_uri, there.folder / "starts"))
            return start if shipped_folder(start) else absolute(start, here)  # shipped/NAME means the same everywhere
        except SpecError as error:
            raise SpecError(f"{key}.start: {error}") from None

    return dataclasses.replace(  # once: a whole configuration is checked whenever one is made
        spec,
        store=store,
        data=dataclasses.replace(spec.data, datasets={name: found(d) for name, d in spec.data.datasets.items()}),
        teachers={name: trained(teacher, f"teachers.{name}") for name, teacher in spec.teachers.items()},
        student=trained(spec.student, "student"),
    )


def absolute(path: str, base: Path) -> str:
    """A path with `~` and `$VARIABLES` expanded; an address or nothing stays as it is."""
    if not path or "://" in path:
        return path
    return os.path.realpath(base / os.path.expanduser(os.path.expandvars(path)))  # pathlib raises of a loop of links


def lasting_folder(here: Path) -> Path:
    """Where a relative store lies. A submitted job runs in a copy that Ray deletes, so there it is the home folder."""
    return Path.home() / "head-pose-runs" if "/runtime_resources/working_dir_files/" in f"{here}/" else here


def arguments(
    argv: Sequence[str],
    doc: str,
    verbs: Sequence[str] = ("run", "plan"),
    own_keys: str = "",
    codes: Mapping[int, str] = EXIT_CODES,
    options: Callable[[CommandParser], None] = lambda parser: None,
    default: str = DEFAULT_CONFIG,
) -> Any:
    """`[verb] [-c FILE]... [key=value]...` -> verb (else the first), config (else `default`), overrides, json.

    Raises SpecError.
    """
    parser = CommandParser(doc, f"{own_keys}\n{KEYS}".strip(), codes)
    word = "VERB | key=value" if len(verbs) > 1 else "key=value"
    said = f"{' or '.join(verbs)} (default {verbs[0]}), then keys" if len(verbs) > 1 else "keys"
    parser.add_argument("words", nargs="*", metavar=word, help=f"{said}, which come after every file")
    files = f"YAML, merged in order (default {default})"
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help=files)
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    options(parser)
    args = parser.parsed(argv)  # overrides may stand before and after -c
    args.verb = verbs[0]
    words = list(args.words)
    if words and "=" not in words[0]:
        check(words[0] in verbs, f"unknown verb '{words[0]}'{nearest(words[0], list(verbs))}")
        args.verb = words.pop(0)
    args.overrides = words
    args.config = args.config or [default]
    return args


def guarded(main: Callable[[], int]) -> int:
    """Run a command; what the user can mend becomes one sentence on standard error and an exit code."""
    _stop_once()
    try:
        return main()
    except KeyboardInterrupt:
        sys.unraisablehook = lambda lost: None  # of what was cut in its making (a Ray dataset, half built)
        say("stopped; the same command continues from here")
        return EXIT_STOPPED
    except ModuleNotFoundError as error:
        if (said := missing(error)) is error:
            raise
        code, told = EXIT_BAD_INPUT, f"{said}"
    except RemoteError as error:
        code, told = EXIT_FAILED, f"{error}; the same command continues from here"
    except StoreHeld as error:
        code, told = EXIT_STORE_HELD, f"{error}"
    except (UserError, StageFailed) as error:
        code, told = EXIT_FAILED if isinstance(error, StageFailed) else EXIT_BAD_INPUT, f"{error}"
    except OSError as error:  # a stage says it better; this one came before or between them
        if disk_is_full(error):
            code, told = EXIT_FAILED, f"{error}: make room and the same command continues"
        elif error.errno in OF_A_NAME and error.filename is not None:
            code, told = EXIT_BAD_INPUT, f"{printable(os.fsdecode(error.filename))}: {error.strerror}"
        else:
            raise
    say(f"error: {told}")
    return code


def tell(text: str) -> bool:
    """Print a command's result; a reader that has seen enough (`plan | head`) is no error, nor is a letter that the
    terminal does not have. False: nobody reads any more."""
    letters = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(letters, "backslashreplace").decode(letters), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return False
    return True


def _stop_once() -> None:
    """SIGTERM ends a run as Ctrl-C does: runs are closed and a cluster of our own is stopped.

    What comes while that goes on is not obeyed, for Ray that is left in the middle of its shutdown leaves processes,
    or crashes; after `CLOSING_S` it ends the process. Where SIGINT is ignored from the start it stays so: a shell does
    that to what a script puts into the background, so that Ctrl-C is for the script alone.
    """
    stopped, before = list[float](), sys.unraisablehook

    def stop(number: int, frame: Any) -> None:
        if not stopped:
            stopped.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - stopped[0] > CLOSING_S:
            os._exit(EXIT_STOPPED)

    def unraisable(lost: Any) -> None:
        """Raised while an object was freed, a stop goes no further. So it is sent once more."""
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            before(lost)
            return
        stopped.clear()
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM)).start()

    sys.unraisablehook = unraisable
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys; lists stay values."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def as_yaml(spec: PipelineSpec) -> str:
    """The whole configuration as YAML that `load` takes back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(literal(to_dict(spec))))
