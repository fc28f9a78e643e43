"""The state file of a local cluster: its ports and processes, and the database of MLflow."""

import socket
from pathlib import Path

from pydantic import BaseModel, ValidationError

from cluster.processes import ProcessKey


class ClusterError(RuntimeError):
    """A cluster that cannot be started, inspected or ended; says why and what to do."""


class ClusterState(BaseModel):
    """The content of the state file.

    It is saved as soon as a process runs, so that whatever happens next, `down` knows what to end.
    """

    host: str
    """The machine."""
    backend: str
    """MLflow's database, without its password; empty where nothing was started."""
    ports: dict[str, dict[str, int]]
    """Ports of each service, by role; empty where nothing was started."""
    processes: dict[str, list[ProcessKey]]
    """Processes of each service, when they were last listed; the one that started the others comes first."""

    @classmethod
    def load(cls, file: Path) -> "ClusterState":
        """The stored state; an empty one where there is no file.

        Raises:
            ClusterError: It is damaged, or belongs to another machine.
        """
        if not file.exists():
            return cls(host=socket.gethostname(), backend="", ports={}, processes={})
        try:
            state = cls.model_validate_json(file.read_bytes())
        except ValidationError:
            raise ClusterError(
                f"{file} is not a state that this command wrote; see whether Ray and MLflow still run, "
                "end them yourself, and delete the file"
            ) from None
        if state.host != socket.gethostname():
            raise ClusterError(
                f"{file}: host={state.host}, but this is {socket.gethostname()}; run the command there, or "
                "delete the file if that machine is gone, or choose another --workspace"
            )
        return state

    def save(self, file: Path) -> None:
        """Replace the file atomically."""
        partial = file.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(file)
