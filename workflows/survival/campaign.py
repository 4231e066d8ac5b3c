"""The table of faults, the run that nobody disturbs, and the drills one after the other."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workflows.survival import listings, road
from workflows.survival.ground import Ground, Lost, made_in, report
from workflows.survival.nodes import Cluster
from workflows.survival.told import Fault, Hit

Found = Sequence[Hit] | Mapping[str, Sequence[Hit] | Lost]
Run = Callable[[Ground, Cluster], Found]


@dataclass(frozen=True)
class Drill:
    """One name of `only=`; a drill of listings answers for several faults at once."""

    name: str
    faults: Mapping[str, str]  # fault -> what is done
    run: Run
    harms_nodes: bool = False
    compares: bool = True  # with the undisturbed run


DRILLS = (
    Drill("worker", {"worker": "a training worker is killed in mid-epoch"}, road.worker),
    Drill("labeller", {"label actor": "an actor that writes soft labels is killed"}, road.labeller),
    Drill("memory", {"trial out of memory": "a Tune trial is ended as the kernel ends it, by SIGKILL"}, road.memory),
    Drill("node", {"node": "a node is lost in the shards, among the teachers, in the labels"}, road.node, True),
    Drill("borders", {"driver at borders": "the driver is killed after each stage's manifest"}, road.borders),
    Drill("inside", {"driver inside": "the driver is killed inside each stage, at a moment by lot"}, road.inside),
    Drill("places", {"1/2/4 CPUs same bytes": "shards and labels on clusters of 1, 2 and 4 places"}, road.places),
    Drill(
        "listing",
        {
            "poison row": "an empty file, words, no file, a pipe, and a JPEG that keeps its decoder busy for minutes",
            "truncated JPEG": "half a JPEG",
            "NaN, box, duplicate": "a pose that is no number, boxes outside and flat, a row twice",
            "16-bit, EXIF, CMYK": "a deep PNG, a JPEG whose tag says that it lies on its side, one in print's colours",
            "bomb": "a PNG that claims 60,000 by 60,000 pixels, and one with a text of 200 MB",
        },
        listings.listing,
        compares=False,
    ),
    Drill(
        "mutants",
        {
            "600 .mat mutants": "600 annotations of AFLW2000 with bytes drawn anew or cut off",
            "non-UTF-8 path": "a face whose name is no UTF-8",
        },
        listings.mutants,
        compares=False,
    ),
    Drill(
        "advice",
        {"empty, wrong convention": "a listing without a row; yaw of the other sign"},
        listings.advice,
        compares=False,
    ),
    Drill("disk", {"disk full": "no file of our workers may grow beyond 8 kB (a limit, nothing is filled)"}, road.disk),
    Drill("shards", {"torn or flipped shard": "half a shard is gone, and a bit of another is turned"}, road.shards),
    Drill("mlflow", {"MLflow dead, locked": "no server, one that never answers, a locked database"}, road.mlflow),
    Drill("together", {"two runs on one store": "a second run is started on the first one's store"}, road.together),
)
NAMES = [drill.name for drill in DRILLS]


def undisturbed(ground: Ground) -> float:
    """The reference: a run to its end, whose stages' times say when moments come. Returns its seconds."""
    store = ground.store(ground.reference.name)
    report("a run that nobody disturbs")
    command = ground.run("run", store)
    ground.seconds |= {stage: float(made["seconds"]) for stage, made in made_in(store).manifests.items()}
    return time.time() - command.began


def drilled(drill: Drill, ground: Ground, cluster: Cluster) -> list[Fault]:
    """What became of a drill's faults. What was lost is a result here, and no error."""
    began = time.monotonic()

    def fault(name: str, hits: Sequence[Hit] | Lost) -> Fault:
        seconds, what = time.monotonic() - began, drill.faults[name]
        if isinstance(hits, Lost):
            return Fault(name, what, "failed", seconds=seconds, lost=placeless(str(hits)))
        shown = [dataclasses.replace(hit, victim=placeless(hit.victim)) for hit in hits]
        return Fault(name, what, "passed", tuple(shown), seconds)

    def placeless(text: str) -> str:
        """Where the store lies is nobody else's business."""
        return text.replace(str(ground.home), "STORE/survive")

    if drill.harms_nodes and not cluster.nodes_allowed:
        why = "nodes of a cluster that is not ours are left alone without allow=nodes"
        return [Fault(name, what, "skipped", why=why) for name, what in drill.faults.items()]
    report(f"{drill.name}: {'; '.join(drill.faults.values())}")
    try:
        found = drill.run(ground, cluster)
    except Exception as error:  # whatever a drill meets, the others are tried, and this one has failed
        lost = error if isinstance(error, Lost) else Lost(f"{type(error).__name__}: {error}")
        return [fault(name, lost) for name in drill.faults]
    finally:
        ground.end()
    by_fault = found if isinstance(found, Mapping) else dict.fromkeys(drill.faults, found)
    return [fault(name, by_fault.get(name, Lost("it was not tried"))) for name in drill.faults]


def campaign(ground: Ground, cluster: Cluster, chosen: Sequence[str]) -> tuple[float, list[Fault]]:
    """The undisturbed run, and every chosen drill. What a passed drill has written is removed; a failed one's stays."""
    drills, faults = [drill for drill in DRILLS if drill.name in chosen], list[Fault]()
    calm = undisturbed(ground) if any(drill.compares for drill in drills) else 0.0
    for drill in drills:
        new = drilled(drill, ground, cluster)
        faults += new
        for one in new:
            report(f"{one.name}: {one.state}" + (f": {one.lost}" if one.state == "failed" else ""))
        if all(one.state == "passed" for one in new):
            ground.clear(drill.name)
    return calm, faults
