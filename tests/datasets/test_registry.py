"""A dataset is one file: whoever adds it to `readers/` touches nothing else, and everybody knows it."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import pytest

from hpe_core.datasets.registry import check_datasets, reader_modules, readers
from hpe_core.errors import SpecError
from hpe_core.spec.data import ConventionSpec, DatasetSpec, DataSpec
from tests.archives import picture
from workflows.engine.config import REPO, load

TOYS = '''
"""Toys: pictures called <name>_<pitch>_<yaw>_<roll>.png, of faces that fill them."""

from hpe_core.datasets.base import Annotation, FaceRef, Terms
from hpe_core.datasets.files import Archive, within
from hpe_core.datasets.decoding.pictures import read_picture
from hpe_core.detection.fit import DetectorFit
from hpe_core.geometry.crop import Box


class Toys(Archive):
    name = "toys"
    terms = Terms("Toy faces", "toys only", research_only=True, cite="A. Toymaker, Faces, 1999")
    whole = 4
    own_boxes = "toymaker"
    detector_fit = DetectorFit(1.5, 1.25, 0.0)
    has_sequences = True

    def refs(self):
        for path in self.listing((".png",)):
            yield FaceRef(path.removesuffix(".png"), path.split("_")[0], path)

    def load(self, ref):
        image = read_picture(within(self.root, ref.key, self.spec.links))
        pitch, yaw, roll = map(float, ref.sample_id.split("_")[1:])
        return Annotation(Box(0, 0, image.shape[1], image.shape[0]), (pitch, yaw, roll)), image

    def files_of(self, ref):
        return (ref.key,)

    def person_of(self, group):
        return "everybody"

    def missing_parts(self, refs):
        return ["the bear"]
'''
ASKED = """
import contextlib, dataclasses, io, json, pathlib, sys
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.protocols import Boxes, FaceSet, matches, protocol_named
from hpe_core.datasets.registry import fit_to, open_source
from workflows import doctor, full_pipeline
from workflows.engine.config import load
from workflows.storage import code
from workflows.report.card import weight_terms
from workflows.stages.evaluate import drawn_by
from workflows.stages.shards import with_code

root, config, store = sys.argv[1:]

def printed(main, *words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main([*words, "--json"])
    return json.loads(out.getvalue())

spec = load(["demo", config], [f"store={store}"])
toys = spec.data.datasets["toys"]
source = open_source(toys)
protocol = dataclasses.replace(
    protocol_named("offsets-1"), train=(FaceSet("toys"),), test=(FaceSet("toys"),), boxes=Boxes("yolov5", "square")
)

def hashes():
    code._read.cache_clear()
    data = spec.data
    return {
        name: [job.hash for job in with_code(plan_dataset(name, open_source(dataset), data).jobs, dataset.reader)]
        for name, dataset in data.datasets.items()
    }

before = hashes()
file = pathlib.Path("hpe_core/datasets/readers/anything.py")
file.write_text(file.read_text() + "\\n# a comment\\n")
commented = hashes()
file.write_text(file.read_text() + "\\nMORE = 1\\n")
print(json.dumps({
    "plan": printed(full_pipeline.main, "plan", "-c", "demo", "-c", config, f"store={store}"),
    "doctor": printed(doctor.main, "reader=toys", f"root={root}"),
    "who": source.reader.person_of("ann"),
    "boxes": drawn_by(source),
    "fit": dataclasses.astuple(fit_to(toys)),
    "deviations": matches(protocol, spec.data),
    "terms": weight_terms(spec, spec.student),
    "hashes": [before, commented, hashes()],
}))
"""


def test_a_format_is_added_by_one_file(tmp_path):
    """In a copy of the code the plan, the doctor, a protocol, the card and the shards' hashes know the toys."""
    place, root, config = tmp_path / "copy", tmp_path / "toys", tmp_path / "toys.yaml"
    for name in ("hpe_core", "workflows", "conf"):
        shutil.copytree(REPO / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(REPO / name, place)
    (place / "hpe_core" / "datasets" / "readers" / "anything.py").write_text(TOYS)
    root.mkdir()
    for name in ("ann_10_-20_5", "bob_0_40_0", "cyd_-15_0_20"):
        cv2.imwrite(str(root / f"{name}.png"), picture(1))
    config.write_text(f"data: {{train: [heads, toys], datasets: {{toys: {{reader: toys, root: {root}}}}}}}\n")
    command = [sys.executable, "-c", ASKED, str(root), str(config), str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(place)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {row["action"] for row in told["plan"]} == {"run"}
    seen = told["doctor"]["datasets"]["toys"]
    assert (seen["found"], seen["whole"], seen["missing"], seen["kept"]) == (3, 4, ["the bear"], 3)
    assert seen["angles"]["yaw"]["max"] == 40
    assert told["who"] == "everybody" and told["boxes"] == "toymaker" and told["fit"] == [1.5, 1.25, 0.0]
    assert "who draws the boxes of data.datasets.toys is toymaker, in offsets-1 it is yolov5" in told["deviations"]
    assert "toys" in told["terms"] and "research only" in told["terms"]
    before, commented, edited = told["hashes"]
    assert before == commented, "a comment changes no code"
    assert before["toys"] and before["heads"] == edited["heads"] != []
    assert set(before["toys"]).isdisjoint(edited["toys"])


def test_every_reader_says_who_it_is():
    known = ["300w", "300w_lp", "aflw", "aflw2000", "biwi", "manifest", "pointing04", "synthetic"]
    assert sorted(readers()) == known and len({*reader_modules(known)}) == len(known)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"reader": "aflw200", "root": "/a"}, "data.datasets.it.reader is 'aflw200'; allowed: "),
        ({"reader": "aflw200", "root": "/a"}, "did you mean 'aflw2000'?"),
        ({"reader": "aflw2000"}, "data.datasets.it: reader aflw2000 needs root, the archive's folder"),
        ({"reader": "manifest"}, "reader manifest needs root, the table or its folder"),
        ({"reader": "synthetic"}, "a synthetic dataset needs count > 0"),
        ({"reader": "synthetic", "count": 3, "boxes": "b.json"}, "boxes are for archives"),
        ({"reader": "synthetic", "count": 3, "convention": ConventionSpec(yaw_sign=-1)}, "convention is for archives"),
        ({"reader": "aflw", "root": "/a", "group_by": "sequence"}, "group_by: sequence is for archives of sequences"),
    ],
)
def test_what_a_reader_cannot_take_is_said_before_anything_starts(keys, said):
    spec = load(["demo"])
    with pytest.raises(SpecError) as caught:
        check_datasets(DataSpec({**spec.data.datasets, "it": DatasetSpec(**keys)}, spec.data.train, spec.data.test))
    assert said in str(caught.value) and "\n" not in str(caught.value)
