"""`ikebana audit --backend ray`: an audit whose caches are filled on a Ray cluster."""

from typing import Any

from ikebana.cluster.connection import connect
from ikebana.commands import audit as audit_command
from ikebana.commands.audit import Audit
from ikebana.data.sources import PhotoSource
from ikebana.system import progress


def audit(photos: PhotoSource, advise: bool = False, **options: Any) -> Audit:
    """Check photos as `ikebana.audit` does, with the long steps on the nodes of a cluster.

    Raises:
        MachineError: there is no cluster, or a node differs from this machine.
    """
    # First, so that no photos are listed without a cluster.
    with connect():
        from ikebana.cluster.cache_tasks import ClusterCaches

        try:
            return audit_command.audit(photos, advise, caches=ClusterCaches(), **options)
        except KeyboardInterrupt:
            progress.message("interrupted; nothing was lost. Run the same command again to resume.")
            raise
