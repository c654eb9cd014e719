"""Models on the Hugging Face hub: ``push_to_hub`` of every model, and :func:`from_pretrained`.

What goes there is the folder that ``export`` writes: safetensors, JSON and a card. Tested with the
real huggingface_hub against a stand-in server, not against the hub itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shoal.core.distribution import require
from shoal.core.errors import expect, fail
from shoal.models import base

# of the files that models write; a pickle is not among them, and so is never fetched
SUFFIXES = (".json", ".gz", ".safetensors", ".md", ".txt", ".toml")


class OnHub:
    """A model that can be pushed: one with ``export``."""

    def export(self, out: str | Path) -> Any:
        """Write a folder for others."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool = False,
        revision: str | None = None,
    ) -> str:
        """Upload the exported model; :func:`shoal.from_pretrained` opens it.

        A label model also holds the first 80 characters of each training text, which
        ``predict(explain=True)`` quotes: keep the repository private where nobody may read them.

        Args:
            repo_id: ``user/name``; made if it is not there, else files of the same names are
                replaced.
            token: of an account that may write there; by default that of ``hf auth login`` or of
                the environment's ``HF_TOKEN``.
            private: whether a repository that is made is private; one that is there stays as it is.
            revision: the branch, made if need be; main by default.

        Returns:
            the address of the commit.

        Raises:
            InputError: if the model is not fitted, huggingface_hub is not installed, or the hub
                cannot be reached or refuses.
        """
        hub = require("huggingface_hub", "hub", "hub")
        with TemporaryDirectory(prefix="shoal-") as folder:
            out = Path(folder, "model")
            self.export(out)
            with _one_line(repo_id):
                api = hub.HfApi(token=token)
                api.create_repo(repo_id, private=private, exist_ok=True)
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                return str(
                    api.upload_folder(
                        repo_id=repo_id,
                        folder_path=out,
                        revision=revision,
                        commit_message="A model by shoal",
                    ).commit_url
                )


def from_pretrained(
    repo_id: str, *, revision: str | None = None, token: str | None = None, **objects: Any
) -> Any:
    """Download a model from the Hugging Face hub and open it; a second time it is on disk already.

    Files other than safetensors, JSON and text are not fetched: nothing in a stranger's repository
    is run.

    Args:
        repo_id: ``user/name``.
        revision: a branch, tag or commit; main by default.
        token: of an account that may read it; by default that of ``hf auth login``.
        objects: as for :func:`shoal.open`.

    Returns:
        the model, as :func:`shoal.open` gives it.

    Raises:
        InputError: if huggingface_hub is not installed, the hub cannot be reached or refuses, or
            the repository holds no model by shoal.
    """
    hub = require("huggingface_hub", "hub", "hub")
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    with _one_line(repo_id):
        api = hub.HfApi(token=token)
        folder = Path(api.snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    found = (folder / base.HEADER).is_file()
    expect(found, repo_id, f"a model by shoal, with {base.HEADER}", "another", "name another")
    return base.open(folder, **objects)


@contextmanager
def _one_line(repo_id: str) -> Iterator[None]:
    """Turn the errors of the package and of its transport into ones of a line.

    Raises:
        InputError: instead of them.
    """
    from huggingface_hub import errors

    # HTTPError is the transport's own: no connection, no answer in time
    transport: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.RevisionNotFoundError:
        fail(repo_id, "a revision that is there", "none of this name", "leave revision out")
    except errors.RepositoryNotFoundError:
        remedy = "check the name, and pass token= where it is private"
        fail(repo_id, "a repository that this account may use", "none", remedy)
    except errors.HFValidationError as error:
        fail("repo_id", "user/name", _first_line(error), "rename it")
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            remedy = "log in with `hf auth login`, or pass token="
            fail(repo_id, "an account that may do this", _first_line(error), remedy)
        fail(repo_id, "an answer of the hub", _first_line(error), "try again later")
    except ValueError as error:  # such as the header of a card
        fail(repo_id, "an upload as the hub wants it", _first_line(error), "report it to shoal")
    except (OSError, RuntimeError, transport) as error:  # RuntimeError: of one file's upload
        cause = error.__cause__ or error
        fail(repo_id, "a connection to the hub", _first_line(cause), "check the network")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
