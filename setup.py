"""The one step of the build that pyproject.toml cannot state: recipes/, configs/ and train.py become data of stopgrad.

They lie at the top of the repository, once. In a wheel they lie in stopgrad/shelf, from where
``python -m stopgrad new`` takes them; nothing but stopgrad is installed as a package.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHELF = ["train.py", *map(str, sorted([*Path("recipes").rglob("*.py"), *Path("configs").rglob("*.yaml")]))]


class WithShelf(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # `new` reads the checkout
            return
        shelf = Path(self.build_lib, "stopgrad", "shelf")
        shutil.rmtree(shelf, ignore_errors=True)  # of an earlier build
        for file in SHELF:
            (shelf / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, shelf / file)

    def get_source_files(self) -> list[str]:
        """What an sdist holds."""
        return [*super().get_source_files(), *SHELF]


setup(cmdclass={"build_py": WithShelf})
