import os

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Checkpoints of several models."""
    import models

    folder = tmp_path_factory.mktemp("models") / "saved"
    models.save(folder)
    return folder
