"""Build sdist and wheel into a folder and check what strangers would get: python .ci/dist.py FOLDER.

Checks the metadata (twine), the contents, that the wheel with what it requires, and nothing else, runs the README's
callback example, and that with the extra "report" it makes a report of that run. Needs build, twine and what the
package and that extra require.
"""

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# What the README's example leaves to its reader.
MODEL = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import pytorch_lightning as pl

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.blocks, self.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.fc(self.blocks(batch[0])), batch[1])

    def forward(self, x):
        return self.fc(self.blocks(x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

loader = DataLoader(TensorDataset(torch.randn(60, 8), torch.arange(60) % 3), batch_size=30)
model, datamodule = Model(), pl.LightningDataModule.from_datasets(loader.dataset, loader.dataset, batch_size=30)
"""


def run(*command: str | Path, **options: object) -> None:
    """Run a command, and show what it said only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def check_contents(wheel: Path, sdist: Path) -> None:
    """Every tracked file of the package is in the wheel and nothing else is; the sdist has all to test it with."""
    listed = subprocess.run(("git", "ls-files"), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = set(listed.splitlines())
    package = {file for file in tracked if file.startswith("lightning_ssc/")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    needed = package | {file for file in tracked if file.startswith(("tests/", "recipes/")) or "/" not in file}
    needed = {file for file in needed if not file.startswith(".")}
    for what, wrong in {
        "missing from the wheel": package - packed,
        "in the wheel for no reason": packed - package,
        "missing from the sdist": needed - shipped,
        "in the sdist but not in git": shipped - tracked,
    }.items():
        if wrong:
            sys.exit(f"{what}: {', '.join(sorted(wrong))}")


def required(of: Distribution, known: dict[str, set[str]], extras: set[str] | None = None) -> None:
    """Gather what a distribution with extras requires, and what that requires, in ``known``: name to extras."""
    for needs in map(Requirement, of.requires or ()):
        if needs.marker is None or any(needs.marker.evaluate({"extra": extra}) for extra in ("", *(extras or ()))):
            name = canonicalize_name(needs.name)
            if name not in known or not needs.extras <= known[name]:
                known[name] = known.get(name, set()) | needs.extras
                required(distribution(name), known, known[name])


def environment(folder: Path, wheel: Path, extras: set[str] | None = None) -> Path:
    """A virtual environment of the wheel and what it requires, by links to what is installed here; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    known: dict[str, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required(PathDistribution(zipfile.Path(archive, metadata.removesuffix("METADATA"))), known, extras)
    for name in known:
        installed = distribution(name)
        for part in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (site / part).exists():  # a folder that several share is linked once
                (site / part).symlink_to(str(installed.locate_file(part)))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    run(sys.executable, "-m", "pip", "--python", python, "check")
    ours = sorted(name for name in known if not name.startswith(("nvidia-", "cuda-")))
    named = f"{wheel.name}[{','.join(sorted(extras))}]" if extras else wheel.name
    print(f"{named} requires {len(ours)} distributions (besides CUDA's): {', '.join(ours)}")
    return python


def check_example(wheel: Path) -> None:
    """Run the README's callback example where there is nothing but the wheel and what it requires, and report on it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "callbacks=[monitor]" in b)
    with TemporaryDirectory() as scratch:
        example = Path(scratch) / "example.py"
        example.write_text(MODEL + code, encoding="utf-8")
        run(environment(Path(scratch) / "bare", wheel), example, cwd=scratch)
        (ran,) = Path(scratch).glob("lightning_logs/version_0")
        if not list(ran.glob("ssc/*.npz")):
            sys.exit("The README's example left no snapshots.")
        drawing = environment(Path(scratch) / "drawing", wheel, {"report"})
        run(drawing, "-m", "lightning_ssc", "report", ran, "--figures", "-o", ran / "report", cwd=scratch)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (built,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", built, source)
    check_contents(built, source)
    check_example(built)
    print(f"{built.name} and {source.name}: metadata, contents and the README's example are in order")
