# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

if __name__ == "__main__":
    version: dict = {}
    exec((HERE / "nnunet_dhc" / "__init__.py").read_text(), version)
    setup(
        name="nnunet_dhc",
        version=version["__version__"],
        description="Semi-supervised, class-imbalance-aware segmentation (DHC) for nnU-Net v2",
        long_description=(HERE / "README.md").read_text() if (HERE / "README.md").is_file() else "",
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        python_requires=">=3.10",
        packages=[*find_packages(include=["nnunet_dhc", "nnunet_dhc.*"]), "nnunet_dhc._nnunet_ext"],
        package_data={"nnunet_dhc.reporting": ["templates/*"]},
        install_requires=[
            # 2.8 brought nnUNet_extTrainer. 2.9 may change the methods we override: run tests/contract against it
            # before lifting the bound.
            "nnunetv2>=2.8,<2.9",
            # 2.5 brought the entry-point group torch.backends that makes the trainers findable.
            "torch>=2.5",
            "filelock",
            "packaging",
            "threadpoolctl",
            "tqdm",
            # For reports; all but jinja2 (which torch brings) come with nnunetv2 too.
            "jinja2",
            "nibabel",
            "numpy",
            "pillow",
            "scipy>=1.15",
            "SimpleITK",
        ],
        extras_require={
            "test": ["pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "setuptools>=70.1"],
            # Compared with in tests where it is installed; it has to be compiled and is under the GPL.
            "oracles": ["medpy"],
        },
        entry_points={
            "torch.backends": ["nnunet_dhc = nnunet_dhc._autoload:register"],
            "console_scripts": ["nnunet_dhc = nnunet_dhc.cli.main:main"],
        },
    )
